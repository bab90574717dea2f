//! The CUDA backend from outside: drivers that will not do, a driver that will, and one that fails while it runs.
//!
//! What needs a driver wants the one that is none (`tests/kernels/fake_cuda.cpp`), which can be told to fail: `make test-fake-gpu`.
//! Without it those tests are skipped, and say so.

#![cfg(target_os = "linux")]

#[path = "../abi_support/mod.rs"]
mod abi_support;
mod device;
mod fake;
mod faults;
mod stubs;
