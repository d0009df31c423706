"""Camera frames of rosbag2 recordings, read with rosbags, without ROS.

    with open_camera_bag('drive_0412', topic='/front/image_raw') as bag:
        for frame in bag.frames(start_s=10.0, duration_s=60.0):
            rgb = message_to_rgb(frame.message)

Damaged recordings are read as far as possible: files that rosbags refuses by mcap_salvage.py and
sqlite3_salvage.py. Each damage is a line in `problems`; a bag with nothing usable is a `BagError`.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any, TypeAlias
from urllib.parse import quote

import yaml
from backports import zstd
from rosbags.interfaces import Connection, ConnectionExtRosbag2, MessageDefinitionFormat
from rosbags.rosbag2.storage_mcap import McapReader
from rosbags.rosbag2.storage_sqlite3 import Sqlite3Reader
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from gmskip_ros.bags.foreign import ROS1_REMEDY, foreign_file, foreign_topic, lacks_profile
from gmskip_ros.bags.mcap_salvage import McapScan
from gmskip_ros.bags.salvage import IMAGE_TYPES, Message, Source, in_time_order, unpacked
from gmskip_ros.bags.sqlite3_salvage import Sqlite3Scan, has_wal, is_cut_off
from gmskip_ros.errors import UserError

OVERLAY_TOPIC = '/debug/image'  # of the node's own: a camera's image with answers drawn on it
STORAGES = {'.db3': 'sqlite3', '.mcap': 'mcap'}
_SUFFIXES = ('.db3', '.mcap', '.db3.zstd', '.mcap.zstd')
_ZSTD_MAGIC = b'\x28\xb5\x2f\xfd'  # a CDR message begins with 0
_ROS1_SUFFIX = '.bag'

Reader: TypeAlias = McapReader | Sqlite3Reader | McapScan | Sqlite3Scan


class BagError(UserError):
    """A bag cannot be used; the message is one line: the bag, the reason, the remedy."""


@dataclass(frozen=True)
class BagFrame:
    """One message of the camera's topic."""

    time_ns: int  # when it was recorded (the bag's own time)
    stamp_ns: int  # of its header; time_ns where the header has none (0)
    message: Any  # rosbags' message, with sensor_msgs' fields; None if it cannot be deserialized
    raw: bytes  # CDR as recorded
    problem: str  # why message is None, in one line; '' if it is not


def is_bag(path: str | Path) -> bool:
    """Return whether a path looks like a bag: a storage file, or a folder with files of a bag.

    Bags of ROS 1 look like bags, so that opening one says what it is.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        is_ros2 = (path / 'metadata.yaml').is_file() or bool(_storage_files(path))
        return is_ros2 or bool(_ros1_files(path))
    return path.name.endswith((*_SUFFIXES, _ROS1_SUFFIX))


def open_camera_bag(
    path: str | Path, topic: str | None = None, default_distro: str = 'jazzy'
) -> CameraBag:
    """Open a bag for its camera topic: the only one with images unless `topic` names one.

    path: a bag's folder, with metadata.yaml or (of a killed recording) without, or one .db3 or
    .mcap file. default_distro: 'humble' or 'jazzy', whose message definitions are used if the bag
    has none and does not name its distribution. Raises BagError.
    """
    bag = CameraBag(Path(path).expanduser(), default_distro)
    try:
        bag._open(topic)
    except BaseException as error:
        bag.close()
        if isinstance(error, OSError):
            raise BagError(f'bag {str(path)!r}: {_one_line(error)}') from error
        raise
    return bag


class CameraBag:
    """A bag's camera topic; a context manager. Create it with `open_camera_bag`."""

    path: Path
    topic: str
    message_type: str  # sensor_msgs/msg/Image or sensor_msgs/msg/CompressedImage
    storage: str  # sqlite3 or mcap
    start_ns: int  # recording time of the bag's first message on any topic; 0 if it is empty
    end_ns: int  # and of its last one
    num_frames: int  # messages on the topic, by the files' indices
    problems: list[str]  # one line each; grows while the frames are read

    def __init__(self, path: Path, default_distro: str) -> None:
        self.path, self.problems = path, []
        self.topic, self.message_type, self.storage = '', '', ''
        self.start_ns, self.end_ns, self.num_frames = 0, 0, 0
        self._distro = default_distro
        self._files: list[_BagFile] = []
        self._typestore: Typestore | None = None
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> CameraBag:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._cleanup.close()

    def frames(self, start_s: float = 0.0, duration_s: float | None = None) -> Iterator[BagFrame]:
        """Yield the topic's frames in the order of recording time; one pass at a time.

        start_s: first recording time, seconds after `start_ns`; duration_s: seconds from there
        (None: to the end). Memory holds one frame at a time; for mcap, one chunk.
        """
        start_ns = self.start_ns + round(start_s * 1e9)
        stop_ns = None if duration_s is None else start_ns + round(duration_s * 1e9)
        sources: list[Source] = [
            (file.start_ns, partial(file.messages, self.topic, start_ns, stop_ns))
            for file in self._files
            if stop_ns is None or file.start_ns < stop_ns
        ]
        for _, time_ns, raw in in_time_order(sources):
            yield self._frame(time_ns, raw)

    def _frame(self, time_ns: int, raw: bytes) -> BagFrame:
        assert self._typestore is not None
        try:
            if raw.startswith(_ZSTD_MAGIC):
                raw = zstd.decompress(raw)
            message: Any = self._typestore.deserialize_cdr(raw, self.message_type)
            stamp = message.header.stamp
            stamp_ns = stamp.sec * 1_000_000_000 + stamp.nanosec
        except Exception as error:  # generated code may raise anything on a damaged message
            problem = f'not a readable {self.message_type} ({_one_line(error)})'
            return BagFrame(time_ns, time_ns, None, raw, problem)
        return BagFrame(time_ns, stamp_ns or time_ns, message, raw, '')

    # ---- opening

    def _open(self, topic: str | None) -> None:
        if not self.path.exists():
            raise BagError(f'bag {str(self.path)!r}: not found; give a bag folder, .db3 or .mcap')
        metadata = self._read_metadata() if self.path.is_dir() else {}
        for path in self._find_files(metadata):
            try:
                problem = foreign_file(path)
                if problem:
                    raise _UnusableError(f'{path.name}: {problem}')
                file = _BagFile(path.name, *self._unpacked(path), self.problems)
            except _UnusableError as error:
                self.problems.append(str(error))
                continue
            self._cleanup.callback(file.close)
            self._files.append(file)
        if not self._files:
            raise BagError(f'bag {str(self.path)!r}: nothing readable: {"; ".join(self.problems)}')
        self.storage = self._files[0].storage
        with_messages = [file for file in self._files if file.num_messages]
        if with_messages:
            self.start_ns = min(file.start_ns for file in with_messages)
            self.end_ns = max(file.end_ns for file in with_messages)
        self._choose_topic(topic, metadata)
        self._choose_types(metadata.get('ros_distro'))

    def _read_metadata(self) -> Mapping[str, Any]:
        """Return the content of metadata.yaml; {} and a problem if it is missing or unreadable."""
        try:
            text = (self.path / 'metadata.yaml').read_text()
            info = yaml.safe_load(text)['rosbag2_bagfile_information']
            for name in info['relative_file_paths']:
                PurePath(name)  # raises TypeError if it is not text
            return info
        except FileNotFoundError:
            problem = 'missing (was the recording killed?)'
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
            problem = f'not readable ({_one_line(error)})'
        self.problems.append(
            f"metadata.yaml: {problem}; the folder's files are read without it; "
            "'ros2 bag reindex' creates a new one"
        )
        return {}

    def _find_files(self, metadata: Mapping[str, Any]) -> list[Path]:
        """Return the files to read: those that the metadata name, or else all in the folder."""
        if not self.path.is_dir():
            problem = foreign_file(self.path)
            if problem:
                raise BagError(f'bag {str(self.path)!r}: {problem}')
            if not self.path.name.endswith(_SUFFIXES):
                raise BagError(
                    f'bag {str(self.path)!r}: not a bag; give a bag folder, .db3 or .mcap'
                )
            return [self.path]
        present = _storage_files(self.path)
        named = [self.path / PurePath(n).name for n in metadata.get('relative_file_paths', [])]
        if not any(path in present for path in named):
            named = []
        for path in named:
            if path not in present:
                self.problems.append(
                    f'{path.name}: named by metadata.yaml but missing; the other files are read; '
                    'put it back to read it'
                )
        files = [path for path in named if path in present] or present
        ros1_files = _ros1_files(self.path)
        if not files and ros1_files:
            raise BagError(
                f'bag {str(self.path)!r}: a ROS 1 bag in it ({ros1_files[0].name}); {ROS1_REMEDY}'
            )
        if not files:
            raise BagError(
                f'bag {str(self.path)!r}: no .db3 or .mcap file in it; give the folder that '
                'ros2 bag record wrote'
            )
        return files

    def _unpacked(self, path: Path) -> tuple[Path, bool]:
        """Return the file itself or, if it is compressed as a whole, an unpacked temporary copy.

        The second value is False if the packed file is cut off or damaged.
        """
        if path.suffix != '.zstd':
            return path, True
        folder = self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix='gmskip_bag_'))
        copy = Path(folder) / path.stem
        try:
            with copy.open('wb') as output, path.open('rb') as packed:
                decompressor = zstd.ZstdDecompressor()
                for piece in unpacked(decompressor, iter(partial(packed.read, 1 << 20), b'')):
                    output.write(piece)
        except OSError as error:
            raise BagError(
                f'{path}: cannot be unpacked into {folder} ({error.strerror or error}); set TMPDIR '
                'to a folder with more space'
            ) from error
        return copy, decompressor.eof

    def _choose_topic(self, topic: str | None, metadata: Mapping[str, Any]) -> None:
        """Set topic, message_type and num_frames, or raise BagError with the topics of the bag."""
        counts: Counter[tuple[str, str]] = Counter()
        encodings: dict[str, str] = {}
        for connection in (c for file in self._files for c in file.connections):
            counts[connection.topic, connection.msgtype] += connection.msgcount
            if isinstance(connection.ext, ConnectionExtRosbag2):
                encodings[connection.topic] = connection.ext.serialization_format
        for name, msgtype in _topics_of(metadata):  # files may omit topics without messages
            counts[name, msgtype] += 0

        if topic:
            topic = topic if topic.startswith('/') else '/' + topic
            found = [(name, msgtype) for name, msgtype in counts if name == topic]
            if not found:
                raise self._topic_error(f'no topic {topic!r}', counts, 'give one of')
            usable = [entry for entry in found if entry[1] in IMAGE_TYPES]
            self._refuse_foreign(found if not usable else [], encodings)
            if not usable:
                raise self._topic_error(
                    f'topic {topic!r} is {found[0][1]}', counts, 'give a camera topic; it has'
                )
        else:
            usable = [entry for entry in counts if entry[1] in IMAGE_TYPES]
            self._refuse_foreign(counts if not usable else [], encodings)
            if not usable:
                raise self._topic_error(
                    'no sensor_msgs/msg/Image or CompressedImage in it',
                    counts,
                    'record a camera topic; it has',
                )
            cameras = [
                entry
                for entry in usable
                if not entry[0].removesuffix('/compressed').endswith(OVERLAY_TOPIC)
            ]
            usable = cameras or usable
            if len(usable) > 1:
                images = Counter({entry: counts[entry] for entry in usable})
                raise self._topic_error('several camera topics', images, 'give one as the topic:')
        # If one name has two types, the one with more messages.
        self.topic, self.message_type = max(usable, key=lambda entry: counts[entry])
        self.num_frames = counts[self.topic, self.message_type]
        encoding = encodings.get(self.topic, 'cdr')
        self._refuse_foreign([(self.topic, self.message_type)], encodings)
        if encoding != 'cdr':
            raise BagError(
                f'bag {str(self.path)!r}: {self.topic} is stored as {encoding!r}; record it with '
                'a ROS 2 middleware (cdr)'
            )
        for file in self._files:
            file.message_type = self.message_type

    def _refuse_foreign(
        self, topics: Iterable[tuple[str, str]], encodings: Mapping[str, str]
    ) -> None:
        """Raise BagError for the first of the topics (name, type) that another system wrote."""
        for name, msgtype in topics:
            problem = foreign_topic(msgtype, encodings.get(name, 'cdr'))
            if problem:
                raise BagError(f'bag {str(self.path)!r}: {name} {problem}')

    def _topic_error(
        self, what: str, counts: Mapping[tuple[str, str], int], remedy: str
    ) -> BagError:
        topics = [f'{n} ({msgtype}, {count})' for (n, msgtype), count in sorted(counts.items())]
        listed = ', '.join(topics[:20]) + (f' and {len(topics) - 20} more' * (len(topics) > 20))
        return BagError(f'bag {str(self.path)!r}: {what}; {remedy} {listed or "no topics"}')

    def _choose_types(self, ros_distro: object) -> None:
        """Use the message definitions of the bag or, if it has none, of its distribution."""
        distro = f'ROS2_{ros_distro}'.upper()
        if distro not in Stores.__members__:
            distro = f'ROS2_{self._distro}'.upper()
        for file in self._files:
            for connection in file.connections:
                if (connection.topic, connection.msgtype) != (self.topic, self.message_type):
                    continue
                if connection.msgdef.format == MessageDefinitionFormat.NONE:
                    continue
                try:
                    self._typestore = _typestore_of(connection)
                except Exception as error:  # parsers and generated code may raise anything
                    self.problems.append(
                        f'{file.name}: its definition of {self.message_type} is not readable '
                        f"({_one_line(error)}); {distro[5:].capitalize()}'s is used"
                    )
                    break
                return
        self._typestore = get_typestore(Stores[distro])


class _UnusableError(Exception):
    """A file of a bag cannot be read at all; the message is one line that names it."""


class _BagFile:
    """One storage file, read with rosbags or, if that fails, with a scan of our own."""

    def __init__(self, name: str, path: Path, is_whole: bool, problems: list[str]) -> None:
        self.name, self._path, self._problems = name, path, problems
        self.storage = STORAGES[path.suffix]
        self.message_type = ''
        self._reader = self._open() if is_whole else self._scan('cut off or damaged')
        # Copies: a reader that is closed forgets them.
        self.connections: list[Connection] = list(self._reader.connections)
        self.num_messages = self._reader.metadata.message_count
        self.start_ns = self._reader.metadata.start_time
        self.end_ns = self._reader.metadata.end_time - 1

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._reader.close()

    def messages(self, topic: str, start_ns: int, stop_ns: int | None) -> Iterator[Message]:
        """Yield the topic's messages of that recording time, in its order; never raises."""
        last_ns, num_at_last, num_to_skip = start_ns, 0, 0
        is_done = False
        while not is_done:
            try:
                for message in self._read(topic, last_ns, stop_ns):
                    if num_to_skip and message[1] == last_ns:
                        num_to_skip -= 1
                        continue
                    if message[1] < last_ns and not self._is_scanned:
                        raise ValueError('its index is not in the order of time')
                    num_at_last = num_at_last + 1 if message[1] == last_ns else 1
                    last_ns = message[1]
                    yield message
                is_done = True
            except Exception as error:  # of rosbags, apsw, lz4, zstd, struct, the disk, ...
                if self._is_scanned or not self._replace_reader(error):
                    self._note(f'{self.name}: {_one_line(error)}; the rest is lost')
                    return
                num_to_skip = num_at_last  # those that have been yielded
        if isinstance(self._reader, Sqlite3Scan) and self._reader.num_lost:
            self._note(f'{self.name}: {self._reader.num_lost} messages of {topic} are damaged')

    @property
    def _is_scanned(self) -> bool:
        return isinstance(self._reader, (McapScan, Sqlite3Scan))

    def _read(self, topic: str, start_ns: int, stop_ns: int | None) -> Iterator[Message]:
        connections = [
            connection
            for connection in self._reader.connections
            if (connection.topic, connection.msgtype) == (topic, self.message_type)
        ]
        if connections:
            yield from self._reader.messages(connections, start_ns, stop_ns)

    def _open(self) -> Reader:
        if self.storage == 'sqlite3' and has_wal(self._path):
            self._note(f'{self.name}: not closed by its recorder; it is read with its -wal file')
            return self._scan()
        try:
            return self._open_with_rosbags()
        except Exception as error:  # of rosbags, apsw, struct, yaml, the disk, ...
            return self._scan(_one_line(error))

    def _open_with_rosbags(self) -> Reader:
        if self.storage == 'sqlite3':
            if is_cut_off(self._path):
                return self._scan()
            # rosbags puts the path into a URI unquoted.
            sqlite3_reader = Sqlite3Reader(Path(quote(str(self._path))))
            sqlite3_reader.open()
            return sqlite3_reader
        if lacks_profile(self._path):  # not damage; rosbags refuses it
            return self._scan()
        mcap_reader = McapReader(self._path)
        mcap_reader.open()
        # rosbags finds what the index lists; without an index, only what is in time order.
        indexed: Counter[int] = Counter()
        for chunk in mcap_reader.chunks:
            indexed.update(chunk.channel_count)
        if all(c.msgcount == indexed[c.id] for c in mcap_reader.connections):
            return mcap_reader
        mcap_reader.close()
        return self._scan()  # an incomplete index is not damage

    def _scan(self, damage: str = '') -> Reader:
        """Return our own reader of the file, after noting the damage if there is any."""
        reader: McapScan | Sqlite3Scan
        reader = (Sqlite3Scan if self.storage == 'sqlite3' else McapScan)(self._path)
        try:
            reader.open()
        except Exception as error:  # of sqlite3, struct, zstd, the disk, ...
            raise _UnusableError(f'{self.name}: {damage or _one_line(error)}') from error
        if reader.is_cut_off:
            damage = 'cut off'
        if not reader.connections:
            reader.close()
            raise _UnusableError(f'{self.name}: {damage or "empty"}, before the first topic')
        if damage:
            self._note(f'{self.name}: damaged ({damage}); read as far as it goes')
        return reader

    def _replace_reader(self, error: Exception) -> bool:
        """Continue with our own reader; return whether that is possible."""
        try:
            reader = self._scan(_one_line(error))
        except _UnusableError:
            return False
        self.close()
        self._reader = reader
        return True

    def _note(self, problem: str) -> None:
        if problem not in self._problems:
            self._problems.append(problem)


def _storage_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.name.endswith(_SUFFIXES) and p.is_file())


def _ros1_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix == _ROS1_SUFFIX and p.is_file())


def _topics_of(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (name, type) of the topics that a bag's metadata list."""
    try:
        topics = [entry['topic_metadata'] for entry in metadata['topics_with_message_count']]
        return [(str(topic['name']), str(topic['type'])) for topic in topics]
    except (TypeError, KeyError):
        return []


def _typestore_of(connection: Connection) -> Typestore:
    """Return the types that the bag defines for a connection."""
    text = connection.msgdef.data
    if connection.msgdef.format == MessageDefinitionFormat.MSG:
        types = get_types_from_msg(text, connection.msgtype)
    else:  # IDL: one file, or several that each follow a line of '=' and a line 'IDL: <type>'
        parts = re.split(r'^={80}\nIDL: .*\n', text, flags=re.MULTILINE)
        types = {}
        for part in parts[1:] or parts:
            types.update(get_types_from_idl(part))
    typestore = get_typestore(Stores.EMPTY)
    typestore.register(types)
    typestore.get_msgdef(connection.msgtype)
    return typestore


def _one_line(error: BaseException) -> str:
    """Return an error's message, or its cause's, on one line; its type if it has none."""
    error = error.__cause__ or error  # rosbags' own message would repeat the path
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return ' '.join(str(error).split())[:200].rstrip('.') or type(error).__name__
