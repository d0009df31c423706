"""One file per method of choosing the blocks to skip; `registry` lists them.

`gmskip --help` loads all of them: at import they load neither torch nor numpy.
"""
