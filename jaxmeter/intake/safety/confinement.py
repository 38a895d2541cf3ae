"""Takes a process' rights away, for good, with what the Linux kernel offers without root.

Landlock leaves the process the files that it is told of, to be read and nothing else; a seccomp
filter refuses the system calls that reach other processes, a network or the system's settings;
limits bound its memory and time. None of the three can be undone by the process itself.

Numbers of system calls and flags are those of the kernel's headers: landlock(7), seccomp(2).
"""

import contextlib
import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

# Landlock's rights over files are bits; a kernel's ABI version says how many of them it knows.
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_PATH_BENEATH = 1

_NO_NEW_PRIVS, _DEATH_SIGNAL, _SECCOMP, _FILTER = 38, 1, 22, 2
_KILL, _ALLOW, _ERROR = 0x80000000, 0x7FFF0000, 0x00050000
_EPERM, _EACCES, _ENOTTY, _ENOSYS = 1, 13, 25, 38
_NEWEST = 470  # calls that the kernel got after this was written do not exist for the process
_THREAD = 0x10000  # of clone: not a process but a thread
_WRITING = os.O_WRONLY | os.O_RDWR | getattr(os, "O_CREAT", 0) | getattr(os, "O_TRUNC", 0)
_READ_SEARCH = 1 << 2  # the capability that lets root read files of other users
# What `ioctl` may ask: of terminals, pending bytes, closing on exec. Others reach devices.
_IOCTLS = (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)

# Name: number on x86-64, number on 64-bit ARM (None: it has no such call).
_REFUSED = {
    # a network, and other processes' sockets
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206),
    "sendmsg": (46, 211), "sendmmsg": (307, 269), "recvfrom": (45, 207), "recvmsg": (47, 212),
    "recvmmsg": (299, 243),
    # other programs and processes
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None),
    "kill": (62, 129), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "process_madvise": (440, 440), "kcmp": (312, 272),
    "setpriority": (141, 140), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274), "ioprio_set": (251, 30), "setpgid": (109, 154),
    "setsid": (112, 157), "prctl_seccomp": (317, 277),
    # memory that limits do not count, or that others share
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "msgget": (68, 186),
    "msgsnd": (69, 189), "semget": (64, 190), "mq_open": (240, 180), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    # files' contents, names and attributes
    "creat": (85, None), "truncate": (76, 45), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "link": (86, None), "linkat": (265, 37), "symlink": (88, None),
    "symlinkat": (266, 36), "unlink": (87, None), "unlinkat": (263, 35), "mkdir": (83, None),
    "mkdirat": (258, 34), "rmdir": (84, None), "mknod": (133, None), "mknodat": (259, 33),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "removexattrat": (466, 466), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    # the system
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "unshare": (272, 97), "setns": (308, 268), "move_mount": (429, 429), "open_tree": (428, 428),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "bpf": (321, 280), "perf_event_open": (298, 241),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, None),
    "ioperm": (173, None), "quotactl": (179, 60), "quotactl_fd": (443, 443), "syslog": (103, 116),
    "vhangup": (153, 58), "personality": (135, 92), "setrlimit": (160, 164),
}  # fmt: skip
# These are looked at: the argument decides.
_CLONE, _CLONE3, _OPEN, _OPENAT, _OPENAT2 = (56, 220), (435, 435), (2, None), (257, 56), (437, 437)
_IOCTL, _TGKILL, _PRLIMIT = (16, 29), (234, 131), (302, 261)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


def confine(
    readable: Iterable[Path], memory: int, seconds: float, *, written: int = 0
) -> list[str]:
    """Takes this process' rights away; what holds from now on, in words.

    Args:
      readable: files, and folders with all that is below them, that may still be read.
      memory: bytes that may be allocated beyond what the process has.
      seconds: of processor time that it may still take, over all its threads.
      written: bytes that a file may have which is open for writing already. None can be opened.

    Returns:
      One phrase for each thing that the system enforces, and for each that it does not. Whoever
      calls this must have one thread only: others would keep their rights.
    """
    held = [*_limited(memory, seconds, written)]
    free = "it may read and write what you may, and use the network: "
    if not sys.platform.startswith("linux"):
        return [*held, f"{free}this system has neither Landlock nor seccomp"]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_DEATH_SIGNAL, 9, 0, 0, 0)
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return [*held, f"{free}this kernel lets no process give up its rights"]
    _drop_capabilities(libc)
    abi = _landlocked(libc, readable)
    if abi:
        held.append(f"reads only the model's files and the installed libraries (Landlock {abi})")
    else:
        held.append("it may read what you may: this kernel has no Landlock")
    if _filtered(libc):
        held.append("no network, no other process, opens no file for writing (seccomp)")
    elif abi:
        held.append("opens no file for writing (Landlock)")
        held.append("it may use the network and signal your processes: no seccomp filter here")
    else:
        held.append("it may write what you may and use the network: no seccomp filter here")
    return held


# --- limits -------------------------------------------------------------------------------------


def _limited(memory: int, seconds: float, written: int) -> Iterator[str]:
    try:
        resource = __import__("resource")
    except ImportError:  # Windows
        return

    def limit(kind: int, value: int) -> bool:
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, value))
            return True
        return False

    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, written)
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = used.ru_utime + used.ru_stime
    if limit(resource.RLIMIT_CPU, int(spent + seconds) + 1):
        yield f"at most {seconds:.0f} s of processor time"
    try:
        pages, _, _, _, _, data, _ = Path("/proc/self/statm").read_text().split()
    except OSError:
        return
    page = resource.getpagesize()
    # Address space beside memory: threads' stacks and arenas are reserved and not used.
    whole = limit(resource.RLIMIT_AS, int(pages) * page + memory + 2**32)
    if limit(resource.RLIMIT_DATA, int(data) * page + memory) or whole:
        yield f"at most {memory / 2**20:.0f} MiB of memory"


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """What makes root more than a user, but for reading what it could read before."""
    version = struct.pack("II", 0x20080522, 0)
    kept = _READ_SEARCH if os.geteuid() == 0 else 0
    rights = struct.pack("6I", kept, kept, 0, 0, 0, 0)
    libc.capset(version, rights)


# --- files: Landlock ----------------------------------------------------------------------------


def _landlocked(libc: ctypes.CDLL, readable: Iterable[Path]) -> int:
    """Allows reading below some paths and nothing else of files; the kernel's ABI, 0 without."""
    abi = libc.syscall(_CREATE_RULESET, None, 0, 1)
    if abi < 1:
        return 0
    rights = (1 << _RIGHTS_BY_ABI.get(abi, 16)) - 1
    network = 0b11 if abi >= 4 else 0  # bind and connect of TCP
    scoped = 0b11 if abi >= 6 else 0  # abstract sockets and signals to others
    fields = [rights, *([network] if abi >= 4 else []), *([scoped] if abi >= 6 else [])]
    attributes = struct.pack(f"{len(fields)}Q", *fields)
    rules = libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    if rules < 0:
        return 0
    try:
        for path in readable:
            allowed = _READ_FILE | (_READ_DIR if path.is_dir() else 0)
            try:
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:  # not every system has every path
                continue
            libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", allowed, place), 0)
            os.close(place)
        return abi if libc.syscall(_RESTRICT_SELF, rules, 0) == 0 else 0
    finally:
        os.close(rules)


# --- system calls: seccomp ----------------------------------------------------------------------

# Classic BPF: load a word of the call, compare, return. `seccomp_data` holds the call's number, the
# architecture, an address and six arguments of 8 bytes (the lower half first).
_LOAD, _EQUAL, _ABOVE, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE = 0, 4

_Step = tuple[int, int, int, int]  # code, steps to skip if true, if false, operand


def _argument(index: int) -> int:
    return 16 + 8 * index


def _filtered(libc: ctypes.CDLL) -> bool:
    """Installs the filter; whether there is one."""
    if (found := _ARCHITECTURES.get(platform.machine())) is None or sys.byteorder != "little":
        return False
    steps = _program(*found)
    packed = b"".join(struct.pack("HBBI", *step) for step in steps)
    code = ctypes.create_string_buffer(packed, len(packed))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
    return libc.prctl(_SECCOMP, _FILTER, program, 0, 0) == 0


def _program(column: int, architecture: int) -> list[_Step]:
    """The filter for an architecture: its column in the tables, and its number."""

    def refuse(error: int) -> _Step:
        return _RETURN, 0, 0, _ERROR | error

    def on(call: tuple[int | None, int | None], *steps: _Step) -> list[_Step]:
        """Steps for one call; they end in a return."""
        number = call[column]
        return [] if number is None else [(_EQUAL, 0, len(steps), number), *steps]

    allow = (_RETURN, 0, 0, _ALLOW)
    steps: list[_Step] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),  # a call under another architecture's numbers
        (_LOAD, 0, 0, _NUMBER),
        (_ABOVE, 0, 1, _NEWEST),  # also x86's "x32" numbers
        refuse(_ENOSYS),
    ]
    for call in _REFUSED.values():
        steps += on(call, refuse(_EPERM))
    # A missing clone3 makes the C library use clone, whose flags can be seen.
    for call in (_CLONE3, _OPENAT2):
        steps += on(call, refuse(_ENOSYS))
    threads = [(_LOAD, 0, 0, _argument(0)), (_ANY_BIT, 1, 0, _THREAD), refuse(_EPERM), allow]
    steps += on(_CLONE, *threads)
    for call, flags in ((_OPEN, 1), (_OPENAT, 2)):
        reading = [(_LOAD, 0, 0, _argument(flags)), (_ANY_BIT, 0, 1, _WRITING), refuse(_EACCES)]
        steps += on(call, *reading, allow)
    asked = [(_EQUAL, len(_IOCTLS) - i, 0, request) for i, request in enumerate(_IOCTLS)]
    steps += on(_IOCTL, (_LOAD, 0, 0, _argument(1)), *asked, refuse(_ENOTTY), allow)
    own = [(_LOAD, 0, 0, _argument(0)), (_EQUAL, 1, 0, os.getpid()), refuse(_EPERM), allow]
    steps += on(_TGKILL, *own)  # abort() signals its own process
    # Reading a limit is prlimit64 without a new one; both halves of the pointer must be 0.
    steps += on(
        _PRLIMIT,
        (_LOAD, 0, 0, _argument(2)),
        (_EQUAL, 0, 3, 0),
        (_LOAD, 0, 0, _argument(2) + 4),
        (_EQUAL, 0, 1, 0),
        allow,
        refuse(_EPERM),
    )
    return [*steps, allow]
