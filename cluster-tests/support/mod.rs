//! What whole-system tests share: real agents on loopback, their API, and what the host sees of them.
//!
//! A [`Mesh`] owns its agents and the folder that all of their files are in. When it is dropped, it ends the
//! agents as an operator would, checks that nothing of theirs is left, and judges what they have told of themselves by the
//! invariants of the protocol; when its test has failed, it kills them and prints their logs.

pub(crate) mod agent;
pub(crate) mod api;
pub(crate) mod clients;
pub(crate) mod mesh;
pub(crate) mod network;
pub(crate) mod place;
pub(crate) mod program;
pub(crate) mod skip;

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) use agent::{Agent, Settings};
pub(crate) use api::{Answer, Api, Ran, container_path};
pub(crate) use clients::Clients;
pub(crate) use mesh::{HEALED, Mesh, Plan};
pub(crate) use network::Network;
pub(crate) use place::Place;
pub(crate) use skip::skipped;

/// For what should happen soon, on a machine that is busy with other tests, as its Docker is.
pub(crate) const SOON: Duration = Duration::from_secs(60);
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Looks until there is something to see, and fails with `what` when that takes longer than `limit`.
#[track_caller]
pub(crate) fn within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(LOOK_EVERY);
    }
}

/// The same, for what should happen soon.
#[track_caller]
pub(crate) fn soon<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(SOON, what, look)
}

/// Waits until `holds`.
#[track_caller]
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    soon(what, || holds().then_some(()));
}

/// Makes `count` calls, all begun at the same moment; their outcomes in order.
pub(crate) fn at_once<T: Send>(count: usize, call: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let barrier = Barrier::new(count);
    thread::scope(|scope| {
        let one = |number| {
            let (barrier, call) = (&barrier, &call);
            scope.spawn(move || {
                barrier.wait();
                call(number)
            })
        };
        let calls: Vec<_> = (0..count).map(one).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    })
}

/// How many different ones there are.
pub(crate) fn distinct<T: Ord>(all: impl IntoIterator<Item = T>) -> usize {
    all.into_iter().collect::<std::collections::BTreeSet<_>>().len()
}
