#!/bin/sh
# Installs the built library, its header, and the files of pkg-config and CMake; also the command line
# with its demonstration model, if it was built. `make install` runs it and sets PREFIX, LIBDIR,
# INCLUDEDIR, DESTDIR and RELEASE, the folder of the built library and program.
set -eu

for folder in "$PREFIX" "$LIBDIR" "$INCLUDEDIR"; do
  case $folder in
    /*) ;;
    *)
      echo "install: '$folder' is not an absolute path, which the installed files need" >&2
      exit 1
      ;;
  esac
done
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
abi=$(sed -n 's/^#define APL_FFI_ABI_VERSION //p' include/apl_ffi.h)
real=libapl_ffi.so.$version
soname=libapl_ffi.so.$abi
if ! grep -aqF "$soname" "$RELEASE/libapl_ffi.so"; then
  echo "install: $RELEASE/libapl_ffi.so is not of ABI $abi, as the header is; run make build" >&2
  exit 1
fi
# The header's folder for CMake: relative to the library's folder (lib -> .., lib/x86_64-linux-gnu
# -> ../..) if both are under the prefix, else absolute.
case $LIBDIR:$INCLUDEDIR in
  "$PREFIX"/*:"$PREFIX"/*)
    up=$(printf '%s' "${LIBDIR#"$PREFIX"/}" | sed 's|[^/][^/]*|..|g')
    include="\${_apl_ffi_libdir}/$up/${INCLUDEDIR#"$PREFIX"/}"
    ;;
  *) include=$INCLUDEDIR ;;
esac

lib=$DESTDIR$LIBDIR
install -d "$lib/pkgconfig" "$lib/cmake/apl_ffi" "$DESTDIR$INCLUDEDIR"
install -m 755 "$RELEASE/libapl_ffi.so" "$lib/$real"
ln -sf "$real" "$lib/$soname"
ln -sf "$soname" "$lib/libapl_ffi.so"
install -m 644 include/apl_ffi.h "$DESTDIR$INCLUDEDIR/apl_ffi.h"

# A text in the replacement of sed's s|…|…|.
escaped() {
  printf '%s' "$1" | sed 's/[&|\\]/\\&/g'
}

fill() {
  sed -e "s|@prefix@|$(escaped "$PREFIX")|g" -e "s|@libdir@|$(escaped "$LIBDIR")|g" \
      -e "s|@includedir@|$(escaped "$INCLUDEDIR")|g" \
      -e "s|@version@|$version|g" -e "s|@major@|${version%%.*}|g" \
      -e "s|@minor@|$(printf '%s' "$version" | cut -d. -f2)|g" \
      -e "s|@file@|$real|g" -e "s|@soname@|$soname|g" -e "s|@include@|$(escaped "$include")|g" \
      "packaging/$1.in" > "$2/$1"
  chmod 644 "$2/$1"
}
fill apl_ffi.pc "$lib/pkgconfig"
fill apl_ffiConfig.cmake "$lib/cmake/apl_ffi"
fill apl_ffiConfigVersion.cmake "$lib/cmake/apl_ffi"
echo "installed: $lib/$real"

# The program looks for models in ../share/apl_ffi/models, as seen from its folder.
if [ -f "$RELEASE/apl-ffi" ]; then
  bin=$DESTDIR$PREFIX/bin
  demo=$DESTDIR$PREFIX/share/apl_ffi/models/demo
  install -d "$bin" "$demo"
  install -m 755 "$RELEASE/apl-ffi" "$bin/apl-ffi"
  # An earlier one may have had arrays of another name.
  rm -f "$demo"/*
  install -m 644 models/demo/* "$demo"
  echo "installed: $bin/apl-ffi"
fi
