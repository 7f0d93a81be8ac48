"""What stands around a recording in its file: tags, other recordings, the traces of a transfer."""

from __future__ import annotations

import re

from pipeline.errors import Reason, Stage, TrackError

# How other recordings begin, in eight bytes or more: shorter marks turn up in audio by chance.
_BEGINNING = re.compile(
    rb"RIFF.{4}(?:WAVE|AVI )|RIFX.{4}WAVE|(?:RF64|BW64)\xff{4}WAVE|FORM.{4}AIF[FC]|FRM8.{8}DSD |DSD \x1c\0{7}"
    rb"|caff\0\x01\0\0desc|riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb|fLaC[\0\x80]\0\0\x22|OggS\0\x02.{8}|TTA1[\x01\x02]\0.\0"
    rb"|\0\0\0.ftyp.{4}|\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9|FLV\x01.\0\0\0\x09|Creative Voice File\x1a"
    rb"|wvpk.{4}[\x02-\x10]\x04.{6}\0{4}|MPCKSH|MAC .\x0f\0\0",
    re.DOTALL,
)

# Offset, size, encoding, rate and channels of an au file: FFmpeg plays what follows as the first one says.
_AU_HEADER = re.compile(rb"\.snd\0\0.{6}\0\0\0[\x01-\x1b]\0[\0-\x0b].{2}\0\0\0[\x01-\xff]", re.DOTALL)

_ZEROS = bytes(4096)  # the longest frame, of ac3, is 3,840 bytes; in silence all but its header may be zeros
_NOT_ZERO = re.compile(rb"[^\0]")
_TAG = re.compile(rb"ID3[\x02-\x04]\0[\0-\xff][\0-\x7f]{4}|APETAGEX.{24}", re.DOTALL)

_ID3_FOOTER, _ID3_UNUSUAL = 0x10, 0xD0  # unsynchronised, with an extended header, or with a footer
_ID3_FRAME = re.compile(rb"[A-Z][A-Z0-9]{3}.{6}", re.DOTALL)
_LINKED_BYTES = 2**14  # eleven frames of MPEG audio at any bit rate
_LINKED_FRAMES = 5  # so many alike among them are no chance

_VOC = b"Creative Voice File\x1a"

_LYRICS = re.compile(rb"LYRICSBEGIN")
_APE_ITEM = re.compile(rb".{8}[ -~]{2,255}\0|APETAGEX", re.DOTALL)  # or the footer, of a tag without items

_NUM_LINE_ENDS = 32  # so many with a carriage return each: in binary data one of 256 has one


def skip_tags(data: bytes, start: int = 0) -> int:
    """Return where any number of ID3v2 and APEv2 tags end that begin at ``start``."""
    while True:
        if data[start : start + 3] == b"ID3" and len(data) >= start + 10:
            start = _find_id3_end(data, start)
            continue
        end = start + 32 + int.from_bytes(data[start + 12 : start + 16], "little")
        if data[start : start + 8] != b"APETAGEX" or len(data) < start + 32:
            return start
        has_footer = not data[start + 23] & 0x40
        if has_footer and data[end - 32 : end - 24] != b"APETAGEX":  # a damaged size would take music along
            return start
        start = end


def _find_id3_end(data: bytes, start: int) -> int:
    """Return where an ID3v2 tag ends: as it says, or where a recording begins behind its frames and their padding.

    A damaged size may reach into the music. Sources: ID3v2.3.0, sections 3.1 to 3.3; ID3v2.4.0, sections 3 and 4.
    """
    version, flags = data[start + 3], data[start + 5]
    end = start + 10 + _read_id3_size(data, start + 6)
    if flags & _ID3_UNUSUAL or version not in (3, 4):
        return end + (10 if flags & _ID3_FOOTER else 0)
    rest = _NOT_ZERO.search(data, end)
    if end == len(data) or (rest and (_is_audio(data, _begin(data, rest.start())) or _TAG.match(data, end))):
        return end
    position = start + 10
    while _ID3_FRAME.match(data, position, end) and not _BEGINNING.match(data, position):
        size = data[position + 4 : position + 8]
        num_bytes = _read_id3_size(size, 0) if version == 4 else int.from_bytes(size, "big")
        if not num_bytes:  # which no frame may be
            break
        position += 10 + num_bytes
    rest = _NOT_ZERO.search(data, position, end)
    audio = _begin(data, rest.start()) if rest else end
    return audio if audio > start + 10 and _is_audio(data, audio) else end


def _begin(data: bytes, position: int) -> int:
    """Return where a recording begins whose first byte but for zeros is here: an mp4 begins with three."""
    return position - 3 if data[position + 1 : position + 5] == b"ftyp" else position


def _is_audio(data: bytes, start: int) -> bool:
    """Say whether a recording begins here: by its mark, or as frames of MPEG audio or raw AAC that go on alike."""
    if _BEGINNING.match(data, start):
        return True
    mark = data[start : start + 3]
    if len(mark) < 3 or mark[0] != 0xFF or mark[1] < 0xE0:
        return False
    headers: list[bytes] = re.findall(re.escape(mark[:2]) + b"(.)", data[start : start + _LINKED_BYTES], re.DOTALL)
    # Of the same sample rate: the bits that it has in MPEG audio, two of the four that it has in raw AAC.
    return sum(header[0] & 0x0C == mark[2] & 0x0C for header in headers) >= _LINKED_FRAMES


def _read_id3_size(data: bytes, position: int) -> int:
    """Read 28 bits in four bytes (ID3v2.3.0, section 3.1)."""
    size = 0
    for byte in data[position : position + 4]:
        size = size << 7 | byte & 0x7F
    return size


def cut_tags(data: bytes) -> bytes:
    """Cut off tags before and behind a recording.

    FFmpeg looks behind small ones only, and plays some of those that follow; libsndfile misses as much at the end.
    """
    start = skip_tags(data)
    # A tta file's table tells where its frames end: where bytes are missing, the last one reaches into the tags.
    end = len(data) if data[start : start + 4] == b"TTA1" else find_trailing_tags(data)
    return data[start:end] if start < end else data


def find_trailing_tags(data: bytes) -> int:
    """Return where the tags at a file's end begin, ID3v1, ID3v2.4, Lyrics3 or APEv2: its size without any."""
    end = len(data)
    while True:
        if end >= 128 and data[end - 128 : end - 125] == b"TAG":
            end -= 128
            continue
        start, mark = _find_tag_start(data, end)
        if not 0 <= start < end or not mark.match(data, start, end):  # a damaged size would take music along
            return end
        end = start


def _find_tag_start(data: bytes, end: int) -> tuple[int, re.Pattern[bytes]]:
    """Return where a tag that ends here says that it begins, and what then stands there; below 0 without one."""
    if data[max(0, end - 10) : max(0, end - 7)] == b"3DI":  # a footer (ID3v2.4.0, section 3.4)
        return end - 20 - _read_id3_size(data, end - 4), _TAG
    if data[max(0, end - 9) : end] == b"LYRICS200" and data[end - 15 : end - 9].isdigit():
        return end - 15 - int(data[end - 15 : end - 9]), _LYRICS
    if data[max(0, end - 32) : max(0, end - 24)] == b"APETAGEX":
        size, has_header = int.from_bytes(data[end - 20 : end - 16], "little"), data[end - 9] & 0x80
        return (end - size - 32, _TAG) if has_header else (end - size, _APE_ITEM)
    return -1, _TAG


def require_alone(data: bytes, end: int) -> None:
    """Refuse a file in which another recording follows the one that was read.

    Args:
        data: The whole file.
        end: Where the last packet that was read ends.

    Raises:
        TrackError: Another recording begins behind it.
    """
    if data.startswith(_VOC):
        end = min(end, _find_voc_end(data))
    match = _BEGINNING.search(data, max(end, 1)) or _find_other_au(data)
    if match:
        message = (
            f"expected one recording, found another that begins at byte {match.start()} of {len(data)} and would "
            "not be heard; take the file apart"
        )
        raise TrackError(Stage.DECODE, Reason.UNREADABLE, message)


def _find_voc_end(data: bytes) -> int:
    """Return where the blocks of a voc file end; FFmpeg takes what stands behind them for further ones."""
    position = int.from_bytes(data[20:22], "little")
    while 0 < position < len(data) and data[position]:
        position += 4 + int.from_bytes(data[position + 1 : position + 4], "little")
    return position


def _find_other_au(data: bytes) -> re.Match[bytes] | None:
    """Return the header of an au recording of another kind that follows an au recording."""
    headers = list(_AU_HEADER.finditer(data)) if data[:4] == b".snd" else []
    return next((header for header in headers if header[0][12:] != headers[0][0][12:]), None)


def require_binary(data: bytes) -> None:
    """Refuse a file whose line ends were converted: noise to any decoder that does not refuse it itself.

    Raises:
        TrackError: Each byte that could be a line feed has a carriage return before it.
    """
    first = data.find(b"\n")
    if data[max(0, first - 1) : first] != b"\r":  # as in nearly all files, which need not be counted through
        return
    num_line_ends = data.count(b"\r\n")
    if num_line_ends >= _NUM_LINE_ENDS and num_line_ends == data.count(b"\n"):
        message = (
            f"all {num_line_ends} line ends have a carriage return: the file was sent as text; send it as binary"
        )
        raise TrackError(Stage.DECODE, Reason.UNREADABLE, message)


def find_adts_start(data: bytes) -> int:
    """Return where three frames of raw AAC follow each other for the first time; 0 where they never do."""
    for match in re.finditer(rb"\xff[\xf0\xf1\xf8\xf9]", data):
        position = match.start()
        for _ in range(3):
            header = data[position : position + 7]
            if len(header) < 7 or header[0] != 0xFF or header[1] & 0xF6 != 0xF0:
                break
            position += max(7, (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5)
        else:
            return match.start()
    return 0


def count_tag_bytes(data: bytes) -> int:
    """Return how many bytes of a file belong to ID3v2 and APEv2 tags, wherever they stand."""
    return sum(end - start for start, end in _find_tags(data))


def count_zeroed_bytes(data: bytes) -> int:
    """Return how many bytes lie in runs of zeros longer than any frame, tags left out: music that is not there."""
    if _ZEROS not in data:
        return 0
    num_bytes = position = 0
    for tag_start, tag_end in [*_find_tags(data), (len(data), len(data))]:
        while (start := data.find(_ZEROS, position, tag_start)) >= 0:
            end = _NOT_ZERO.search(data, start, tag_start)
            position = end.start() if end else tag_start
            num_bytes += position - start
        position = tag_end
    return num_bytes


def _find_tags(data: bytes) -> list[tuple[int, int]]:
    """Return where ID3v2 and APEv2 tags begin and end."""
    tags: list[tuple[int, int]] = []
    for match in _TAG.finditer(data):
        if not tags or match.start() >= tags[-1][1]:
            tags.append((match.start(), min(skip_tags(data, match.start()), len(data))))
    return tags
