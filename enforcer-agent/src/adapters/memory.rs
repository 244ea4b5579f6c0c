//! The memory of this process.
#![expect(
    unsafe_code,
    reason = "calls of the C library; each block states need and soundness"
)]

use rustix::param::page_size;

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

/// Lets go of the pages of a constant that will hardly be read again. Whoever reads it gets them from the program's file anew.
pub fn let_go(constant: &'static [u8]) {
    let page_bytes = page_size();
    let range = constant.as_ptr_range();
    let first = (range.start as usize).next_multiple_of(page_bytes);
    let end = range.end as usize / page_bytes * page_bytes;
    if first < end {
        // SAFETY: (need) no safe interface has it. (soundness) the whole pages of a constant of bytes: they are mapped from a file
        // and nobody can write to them, so that they come back as they were.
        unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_DONTNEED) };
    }
}
