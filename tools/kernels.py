#!/usr/bin/env python3
"""Compiles kernels/all.cu into kernels/images, with compilers from PyPI; no CUDA installation, no GPU.

    tools/kernels.py images         every image and index.json, each compiled twice and compared
    tools/kernels.py check          fails where index.json is not that of these sources and images
    tools/kernels.py lint           a second compiler, nvcc 13: warnings are errors, and nothing may spill

The images come from NVRTC 12.9, whose cubins load from driver 525 on, and the PTX under them from NVRTC 12.0 (ISA 8.0), which
the same drivers compile.
"""

import ctypes
import hashlib
import json
import lzma
import re
import struct
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels"
IMAGES = KERNELS / "images"
PACKAGES = ROOT / "target" / "nvrtc"

# In the order in which index.json's hash takes them.
SOURCES = ["activations.cu", "all.cu", "args.h", "attention.cu", "matmul.cu", "matvec.cu", "primitives.cuh", "quantize.cuh",
           "transformer.cu", "weights.cuh"]
CUBINS = [75, 80, 86, 89, 90, 100, 120]
PTX = 75

NVRTC_12_9 = ["nvidia-cuda-nvrtc-cu12==12.9.86", "nvidia-cuda-runtime-cu12==12.9.79", "nvidia-cuda-cccl-cu12==12.9.27"]
NVRTC_12_0 = ["nvidia-cuda-nvrtc-cu12==12.0.140", "nvidia-cuda-runtime-cu12==12.0.146"]
NVCC_13_0 = ["nvidia-cuda-nvcc==13.0.88", "nvidia-nvvm==13.0.88", "nvidia-cuda-crt==13.0.88",
             "nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cccl==13.0.85"]
OPTIONS = ["-std=c++17"]


def install(name, packages):
    """The folder that holds `packages`, downloaded once; None where they cannot be had."""
    folder = PACKAGES / name
    ready = folder / "ready"
    if not ready.exists():
        print(f"downloading {', '.join(packages)}", flush=True)
        command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--target", folder]
        if subprocess.run([*command, *packages]).returncode != 0:
            return None
        ready.touch()
    return folder


class Nvrtc:
    """The runtime compiler, through its C interface."""

    def __init__(self, folder):
        lib = folder / "nvidia" / "cuda_nvrtc" / "lib"
        # The compiler looks for its built-ins by name only: they must be in the process before it is.
        builtins = sorted(p for p in lib.glob("libnvrtc-builtins.so.*"))[0]
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        self.lib = ctypes.CDLL(str(lib / "libnvrtc.so.12"))
        self.lib.nvrtcGetErrorString.restype = ctypes.c_char_p

    def call(self, name, *args):
        status = getattr(self.lib, name)(*args)
        if status != 0:
            raise RuntimeError(f"{name}: {self.lib.nvrtcGetErrorString(status).decode()}")

    def text(self, program, what):
        size = ctypes.c_size_t()
        self.call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self.call(f"nvrtcGet{what}", program, buffer)
        return buffer.raw

    def compile(self, arch, result):
        """`arch` as in sm_90; `result` is CUBIN or PTX. Warnings are errors. No path of this machine gets in."""
        headers = [name for name in SOURCES if name != "all.cu"]
        texts = (ctypes.c_char_p * len(headers))(*[(KERNELS / h).read_bytes() for h in headers])
        names = (ctypes.c_char_p * len(headers))(*[h.encode() for h in headers])
        program = ctypes.c_void_p()
        self.call("nvrtcCreateProgram", ctypes.byref(program), (KERNELS / "all.cu").read_bytes(), b"all.cu", len(headers), texts, names)
        options = [*OPTIONS, f"--gpu-architecture={arch}"]
        status = self.lib.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*[o.encode() for o in options]))
        log = self.text(program, "ProgramLog").rstrip(b"\0").decode().strip()
        if status != 0 or log:
            sys.exit(f"{arch}: {log or 'does not compile'}")
        image = self.text(program, result)
        self.call("nvrtcDestroyProgram", ctypes.byref(program))
        return image


def sources_hash():
    return hashlib.sha256(b"".join((KERNELS / name).read_bytes() for name in SOURCES)).hexdigest()


def kernel_names(ptx):
    """The kernels that the sources define, as the PTX has them."""
    return sorted(name.decode() for name in re.findall(rb"\.visible \.entry (\w+)", ptx))


def check_cubin(arch, image):
    """The ELF's ABI version decides which drivers take it: 7 is for 525 on, 8 for 580 on."""
    if image[:4] != b"\x7fELF" or struct.unpack_from("<H", image, 18)[0] != 190:
        sys.exit(f"sm_{arch}: not a cubin")
    if arch < 100 and image[8] != 7:
        sys.exit(f"sm_{arch}: ELF ABI {image[8]}, expected 7")


def packed(image):
    return lzma.compress(image, check=lzma.CHECK_CRC32, preset=9 | lzma.PRESET_EXTREME)


def images():
    new, old = install("c12.9", NVRTC_12_9), install("c12.0", NVRTC_12_0)
    if new is None or old is None:
        sys.exit("the compilers cannot be had")
    IMAGES.mkdir(exist_ok=True)
    entries = []

    def keep(file, image, **about):
        (IMAGES / file).write_bytes(packed(image))
        entries.append({**about, "file": file, "bytes": len(image), "sha256": hashlib.sha256(image).hexdigest()})

    compiler = Nvrtc(new)
    for arch in CUBINS:
        image = compiler.compile(f"sm_{arch}", "CUBIN")
        if image != compiler.compile(f"sm_{arch}", "CUBIN"):
            sys.exit(f"sm_{arch}: compiled twice, the images differ")
        check_cubin(arch, image)
        keep(f"sm_{arch}.cubin.xz", image, kind="cubin", arch=arch)
    # A process holds one NVRTC: the older one gets its own.
    ptx = subprocess.run([sys.executable, __file__, "ptx"], check=True, capture_output=True).stdout
    if not re.search(rb"^\.version 8\.0$", ptx, re.M):
        sys.exit("fallback.ptx is not of ISA 8.0")
    keep("fallback.ptx.xz", ptx, kind="ptx", arch=PTX)
    index = {"sources": SOURCES, "sources_sha256": sources_hash(), "kernels": kernel_names(ptx), "images": entries}
    (IMAGES / "index.json").write_text(json.dumps(index, indent=2) + "\n")
    stored = sum((IMAGES / e["file"]).stat().st_size for e in entries)
    print(f"{len(entries)} images, {stored} bytes, {len(index['kernels'])} kernels")


def ptx():
    text = Nvrtc(install("c12.0", NVRTC_12_0)).compile(f"compute_{PTX}", "PTX")
    sys.stdout.buffer.write(text.rstrip(b"\0"))


def check():
    index = json.loads((IMAGES / "index.json").read_text())
    if index["sources"] != SOURCES or index["sources_sha256"] != sources_hash():
        sys.exit("kernels/images is not of these sources: make kernels")
    for entry in index["images"]:
        if hashlib.sha256(lzma.decompress((IMAGES / entry["file"]).read_bytes())).hexdigest() != entry["sha256"]:
            sys.exit(f"{entry['file']} is not what index.json says: make kernels")
    print(f"{len(index['images'])} images are of these sources")


def lint():
    folder = install("nvcc13", NVCC_13_0)
    if folder is None:
        print("SKIPPED: nvcc cannot be had; the kernels were not held against a second compiler", file=sys.stderr)
        return
    nvcc = folder / "nvidia" / "cu13" / "bin" / "nvcc"
    most = {}
    for arch in CUBINS:
        command = [nvcc, "-cubin", f"-arch=sm_{arch}", *OPTIONS, "-Werror", "all-warnings", "-Xptxas", "-v,-warn-spills",
                   "-o", PACKAGES / "lint.cubin", KERNELS / "all.cu"]
        run = subprocess.run(command, capture_output=True, text=True)
        report = run.stdout + run.stderr
        if run.returncode != 0:
            sys.exit(report)
        spills = [n for n in re.findall(r"(\d+) bytes spill", report) if n != "0"]
        if spills:
            sys.exit(f"sm_{arch}: registers spill\n{report}")
        kernels = re.findall(r"Compiling entry function '(\w+)'.*?Used (\d+) registers", report, re.S)
        if not kernels:
            sys.exit(f"sm_{arch}: nvcc reported no kernels\n{report}")
        most[arch] = max((int(r), name) for name, r in kernels)
    for arch, (registers, name) in most.items():
        print(f"sm_{arch}: no spills; most registers {registers}, {name}")


if __name__ == "__main__":
    verbs = {"images": images, "check": check, "lint": lint, "ptx": ptx}
    if len(sys.argv) != 2 or sys.argv[1] not in verbs:
        sys.exit(__doc__)
    verbs[sys.argv[1]]()
