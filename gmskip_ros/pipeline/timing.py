"""The two ways of timing the answers to a frame; docs/performance.md says which measures what."""

ISOLATED = 'isolated'  # every answer as if alone: times can be compared
SHARED = 'shared'  # least time for the frame: answers share work, which is in none of their times
TIMINGS = (ISOLATED, SHARED)
