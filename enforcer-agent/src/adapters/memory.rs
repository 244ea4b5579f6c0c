//! The memory of this process.
#![expect(
    unsafe_code,
    reason = "a call of the C library, whose need and soundness it states"
)]

/// Gives memory that is free back to the kernel. What a policy takes while it is compiled lies between what is kept of it, so
/// that the allocator would hold it for ever.
#[cfg(target_env = "gnu")]
pub fn give_back() {
    // SAFETY: (need) no safe interface has it. (soundness) it takes a number, and frees only what is free.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators give back by themselves, or cannot be asked.
#[cfg(not(target_env = "gnu"))]
pub fn give_back() {}
