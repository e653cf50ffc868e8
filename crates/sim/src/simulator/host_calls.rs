//! What a simulation must not take from its host: randomness and time.
//!
//! `HashMap`s, gossip's choice of peers and UUIDs draw from `getrandom`; wall clocks and `std::time::Instant` from
//! `clock_gettime`. Both are libc functions, and a program's own take their place at link time. On a thread that
//! simulates they answer from the seed and the simulated time, on all others they ask the kernel. This is the one place
//! with unsafe code; no build that ships has it.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;

/// What monotonic clocks show when a simulation begins, and wall clocks: 2026-01-01.
const MONOTONIC_S: i64 = 1_000_000;
const WALL_S: i64 = 1_767_225_600;

thread_local! {
    static SIMULATES: Cell<bool> = const { Cell::new(false) };
    static RANDOM: Cell<u64> = const { Cell::new(0) };
    static ELAPSED_NS: Cell<i64> = const { Cell::new(0) };
}

/// Runs a simulation on a fresh thread, whose randomness and time are the seed's.
pub fn on_a_thread_of_the_seed<T: Send + 'static>(seed: u64, simulation: impl FnOnce() -> T + Send + 'static) -> T {
    // The metrics' clock measures itself once in a process, against clocks that must go on meanwhile.
    drop(PrometheusBuilder::new().build_recorder());
    let thread = std::thread::Builder::new().name(format!("seed-{seed}")).spawn(move || {
        RANDOM.set(seed);
        SIMULATES.set(true);
        let result = simulation();
        SIMULATES.set(false);
        result
    });
    match thread.map(std::thread::JoinHandle::join) {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(error) => panic!("no thread for the simulation: {error}"),
    }
}

/// Moves this thread's clocks on.
pub(super) fn set_elapsed(elapsed: Duration) {
    ELAPSED_NS.set(i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX));
}

fn next_byte() -> u8 {
    let mut x = RANDOM.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    RANDOM.set(x);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x >> 56) as u8
}

/// Takes libc's place.
///
/// # Safety
/// As getrandom(2): `buffer` is valid for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut libc::c_void, length: libc::size_t, flags: libc::c_uint) -> isize {
    if !SIMULATES.get() {
        // SAFETY: the caller's own promise, passed on.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) } as isize;
    }
    for at in 0..length {
        // SAFETY: `at` is below `length`, for which the caller vouches.
        unsafe { buffer.cast::<u8>().add(at).write(next_byte()) };
    }
    length as isize
}

/// Takes libc's place.
///
/// # Safety
/// As clock_gettime(2): `time` points to a timespec.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    let began_s = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => WALL_S,
        libc::CLOCK_MONOTONIC | libc::CLOCK_MONOTONIC_COARSE | libc::CLOCK_MONOTONIC_RAW | libc::CLOCK_BOOTTIME => {
            MONOTONIC_S
        }
        _ => i64::MIN,
    };
    if !SIMULATES.get() || began_s == i64::MIN {
        // SAFETY: the caller's own promise, passed on.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) } as libc::c_int;
    }
    let elapsed_ns = ELAPSED_NS.get();
    let shown = libc::timespec { tv_sec: began_s + elapsed_ns / 1_000_000_000, tv_nsec: elapsed_ns % 1_000_000_000 };
    // SAFETY: the caller vouches for `time`.
    unsafe { time.write(shown) };
    0
}
