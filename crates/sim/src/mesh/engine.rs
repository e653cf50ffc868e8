//! Containers and the runs in them, as a container engine would have them.

use std::collections::BTreeMap;

use embermesh_core::history::What;
use embermesh_core::input::{RunEnd, StartFailure};
use embermesh_core::output::Attempt;
use embermesh_core::time::MS;
use embermesh_core::{Input, RunId};

use super::plan::Fate;
use super::world::{Event, World};

#[derive(Default)]
pub(crate) struct Engine {
    pub(crate) boxes: BTreeMap<u64, Box>,
}

/// One container.
pub(crate) struct Box {
    pub(crate) up: bool,
    pub(crate) dead: bool,
    /// Runs begun in it and neither answered nor ended with it.
    pub(crate) runs: BTreeMap<RunId, Inside>,
}

pub(crate) struct Inside {
    pub(crate) over_time: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum EngineEvent {
    Created(u64),
    Ready(u64),
    StartFails(u64, StartFailure),
    Paused {
        container: u64,
        ok: bool,
    },
    Resumed {
        container: u64,
        ok: bool,
    },
    Removed(u64),
    Died(u64),
    /// The container has answered; its node hears of it a little later.
    Answers {
        container: u64,
        run: RunId,
    },
    OverTime {
        container: u64,
        run: RunId,
    },
    /// The connection to it breaks.
    Breaks {
        container: u64,
        run: RunId,
    },
    Ends {
        container: u64,
        run: RunId,
        end: RunEnd,
    },
}

impl World {
    fn engine_after(&mut self, host: usize, delay: u64, event: EngineEvent) {
        let epoch = self.hosts[host].epoch;
        self.after(delay, Event::Engine { host, epoch, event });
    }

    pub(crate) fn engine_start(&mut self, host: usize, container: u64) {
        let made = Box { up: false, dead: false, runs: BTreeMap::new() };
        self.hosts[host].engine.boxes.insert(container, made);
        self.note("start");
        let delay = 5 * MS + self.below(40 * MS);
        let fails = self.chance(40);
        let event = if fails {
            EngineEvent::StartFails(container, StartFailure::Engine)
        } else {
            EngineEvent::Created(container)
        };
        self.engine_after(host, delay, event);
    }

    pub(crate) fn engine_pause(&mut self, host: usize, container: u64) {
        let (delay, ok) = (MS + self.below(40 * MS), !self.chance(30));
        self.engine_after(host, delay, EngineEvent::Paused { container, ok });
    }

    pub(crate) fn engine_resume(&mut self, host: usize, container: u64) {
        let (delay, ok) = (MS + self.below(20 * MS), !self.chance(30));
        self.engine_after(host, delay, EngineEvent::Resumed { container, ok });
    }

    pub(crate) fn engine_remove(&mut self, host: usize, container: u64) {
        let delay = MS + self.below(60 * MS);
        self.engine_after(host, delay, EngineEvent::Removed(container));
    }

    pub(crate) fn start_run(&mut self, host: usize, container: u64, run: RunId, attempt: Attempt) {
        let Some(body) = self.bodies.get_mut(&attempt.activation) else { return };
        body.tries += 1;
        let (service_us, fate, tries) = (body.service_us, body.fate, body.tries);
        let timeout_us = 400 * MS;
        let there = self.hosts[host].engine.boxes.get_mut(&container).filter(|b| b.up && !b.dead);
        let unwilling = fate == Fate::NeverStartsOnce && tries == 1;
        let Some(there) = there.filter(|_| !unwilling) else {
            self.note("never started");
            let delay = self.below(3 * MS);
            return self.engine_after(host, delay, EngineEvent::Ends { container, run, end: RunEnd::NeverStarted });
        };
        there.runs.insert(run, Inside { over_time: false });
        self.tell(host, What::Entered { container, run });
        let event = match fate {
            Fate::TooLong => EngineEvent::OverTime { container, run },
            Fate::Lost => EngineEvent::Breaks { container, run },
            _ => EngineEvent::Answers { container, run },
        };
        let delay = if fate == Fate::TooLong { timeout_us } else { service_us };
        self.engine_after(host, delay, event);
    }

    /// A container ends by itself; its node and its runs' callers hear of it in any order.
    pub(crate) fn kill(&mut self, host: usize, nth: usize) {
        let boxes = &mut self.hosts[host].engine.boxes;
        let up: Vec<u64> = boxes.iter().filter(|(_, b)| b.up && !b.dead).map(|(n, _)| *n).collect();
        let Some(number) = up.get(nth % up.len().max(1)).copied() else { return };
        self.note("container died");
        self.die(host, number);
        let delay = self.below(10 * MS);
        self.engine_after(host, delay, EngineEvent::Died(number));
    }

    fn die(&mut self, host: usize, container: u64) {
        let Some(there) = self.hosts[host].engine.boxes.get_mut(&container) else { return };
        there.dead = true;
        for (run, inside) in std::mem::take(&mut there.runs) {
            self.tell(host, What::Left { container, run });
            if !inside.over_time {
                let delay = self.below(10 * MS);
                self.engine_after(host, delay, EngineEvent::Ends { container, run, end: RunEnd::Lost });
            }
        }
    }

    pub(crate) fn engine_event(&mut self, host: usize, event: EngineEvent) {
        match event {
            EngineEvent::Created(container) => {
                self.deliver(host, Input::ContainerCreated { container });
                let delay = 10 * MS + self.below(90 * MS);
                let fails = self.chance(40);
                let next = if fails {
                    EngineEvent::StartFails(container, StartFailure::Init)
                } else {
                    EngineEvent::Ready(container)
                };
                self.engine_after(host, delay, next);
            }
            EngineEvent::Ready(container) => {
                if let Some(there) = self.hosts[host].engine.boxes.get_mut(&container) {
                    there.up = true;
                }
                self.deliver(host, Input::ContainerReady { container });
            }
            EngineEvent::StartFails(container, failure) => {
                self.deliver(host, Input::ContainerFailed { container, failure });
            }
            EngineEvent::Paused { container, ok } => {
                self.deliver(host, Input::PauseEnded { container, ok });
            }
            EngineEvent::Resumed { container, ok } => self.deliver(host, Input::ResumeEnded { container, ok }),
            EngineEvent::Removed(container) => {
                self.die(host, container);
                self.hosts[host].engine.boxes.remove(&container);
                self.deliver(host, Input::RemoveEnded { container });
            }
            EngineEvent::Died(container) => self.deliver(host, Input::ContainerDied { container }),
            EngineEvent::Answers { container, run } => {
                let there = self.hosts[host].engine.boxes.get_mut(&container);
                if there.and_then(|b| b.runs.remove(&run)).is_none() {
                    return;
                }
                let end = RunEnd::Answered;
                self.tell(host, What::Left { container, run });
                let delay = self.below(5 * MS);
                self.engine_after(host, delay, EngineEvent::Ends { container, run, end });
            }
            EngineEvent::OverTime { container, run } => {
                self.note("over its time-out");
                self.given_up(host, container, run, RunEnd::TimedOut);
            }
            EngineEvent::Breaks { container, run } => self.given_up(host, container, run, RunEnd::Lost),
            EngineEvent::Ends { container, run, end } => self.run_ends(host, container, run, end),
        }
    }

    /// Nobody waits any more for a run that goes on in its container.
    fn given_up(&mut self, host: usize, container: u64, run: RunId, end: RunEnd) {
        let there = self.hosts[host].engine.boxes.get_mut(&container);
        let Some(inside) = there.and_then(|b| b.runs.get_mut(&run)) else { return };
        inside.over_time = true;
        self.run_ends(host, container, run, end);
    }
}
