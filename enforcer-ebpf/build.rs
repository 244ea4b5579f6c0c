//! Tells the linker, which generates the code, what machines the programs run on.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Headers are read where they stand in the packet, by fields that lie at any address. The kernel allows that wherever the
    // processor does (x86-64, arm64), and LLVM would read them byte by byte unless told so. A linker built with an LLVM
    // before 22 does not know the feature and leaves it at that.
    println!("cargo::rustc-link-arg-bins=--cpu-features=+allows-misaligned-mem-access");
}
