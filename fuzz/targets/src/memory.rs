//! How much memory a call takes at once. Counted by the allocator of whatever program has these targets.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The system's allocator, with a count for each thread.
struct Counting;

fn count(bytes: isize) {
    // A thread that ends has no count any more, and still frees.
    let _ended = LIVE.try_with(|live| {
        live.set(live.get().wrapping_add(bytes));
        PEAK.try_with(|peak| peak.set(peak.get().max(live.get())))
    });
}

const fn bytes(layout: Layout) -> isize {
    layout.size().cast_signed()
}

#[expect(
    unsafe_code,
    reason = "an allocator cannot be written without; every call is the system's own, with the arguments it came with"
)]
// SAFETY: each method hands its arguments to the system's allocator, whose contract is the same, and returns its result.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(bytes(layout));
        // SAFETY: the caller holds the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(bytes(layout));
        // SAFETY: the caller holds the contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-bytes(layout));
        // SAFETY: the caller holds the contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size.cast_signed() - bytes(layout));
        // SAFETY: the caller holds the contract.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

/// What a call returns, and the most that it had of memory at one moment, in bytes.
pub fn peak_of<T>(call: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let returned = call();
    let peak = PEAK.get().wrapping_sub(before);
    (returned, usize::try_from(peak).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_call_takes_and_gives_back_is_counted_at_its_height() {
        let ((), peak) = peak_of(|| {
            let first = std::hint::black_box(vec![1_u8; 3_000]);
            drop(first);
            let second = std::hint::black_box(vec![1_u8; 2_000]);
            drop(second);
        });
        assert!((3_000..5_000).contains(&peak), "{peak}");
    }
}
