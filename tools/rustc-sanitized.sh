#!/bin/sh
# Cargo's RUSTC_WORKSPACE_WRAPPER in tools/sanitize.sh: the compiler, with $SANITIZE for this crate and its tests. Build scripts, which run
# while it is compiled, have no --target.
case " $* " in
  *" --target "*) exec "$@" $SANITIZE ;;
  *) exec "$@" ;;
esac
