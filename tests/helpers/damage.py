"""What happens to files: bits turn, ends are lost, parts become zeros, move or come twice."""


def flip(path, share, bit=0):
    content = bytearray(path.read_bytes())
    content[min(int(share * len(content)), len(content) - 1)] ^= 1 << bit
    path.write_bytes(content)


def zero(path, first, last):
    content = bytearray(path.read_bytes())
    part = slice(int(first * len(content)), int(last * len(content)))
    content[part] = bytes(len(content[part]))
    path.write_bytes(content)


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def swap(one, other):
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def insert(path, share, more):
    content = path.read_bytes()
    at = int(share * len(content))
    path.write_bytes(content[:at] + more + content[at:])


def damage(path, draw):
    """Do one of these to a file, where and how much as ``draw``, a `random.Random`, says."""
    first, last = sorted((draw.random(), draw.random()))
    draw.choice(
        [
            lambda: flip(path, first, draw.randrange(8)),
            lambda: flip(path, first, draw.randrange(8)),
            lambda: cut(path, first),
            lambda: zero(path, first, min(last, first + 0.1)),
            lambda: zero(path, first, last),
            lambda: insert(path, first, draw.randbytes(draw.randint(1, 40))),
            lambda: insert(path, first, path.read_bytes()),
            lambda: path.write_bytes(draw.randbytes(draw.randint(0, 400))),
        ]
    )()
