//! Containers that somebody kills or pauses behind their agent's back.

use std::fs;

use crate::dice::Dice;
use crate::engine::try_docker;
use crate::ground::Ground;
use crate::nemesis::{Hold, end, state};

/// Tries to find one that is still there.
const TRIES: usize = 5;

/// One that was disturbed.
pub(crate) struct Container {
    pub(crate) owner: usize,
    id: String,
    how: How,
    /// How often it was seen as it was made to be.
    seen: u32,
}

enum How {
    /// A process, stopped until it is let go.
    Held(i32, Option<Hold>),
    Ended(i32),
    /// By `docker`, which has told that it was done.
    Docker(&'static str),
}

/// A container that runs, with its process where that is one of this host's.
struct Found {
    owner: usize,
    id: String,
    pid: i32,
}

pub(crate) fn kill_one(ground: &Ground, dice: &mut Dice) -> Result<Container, String> {
    disturb(ground, dice, "kill")
}

pub(crate) fn pause_one(ground: &Ground, dice: &mut Dice) -> Result<Container, String> {
    disturb(ground, dice, "pause")
}

fn disturb(ground: &Ground, dice: &mut Dice, what: &'static str) -> Result<Container, String> {
    let mut why = "no container ran".to_owned();
    for _ in 0..TRIES {
        let found = if ground.relays.is_empty() { processes(ground) } else { of_docker(ground)? };
        let Some(Found { owner, id, pid }) = dice.pick(&found) else { continue };
        let container = |how| Container { owner: *owner, id: id.clone(), how, seen: 0 };
        if !ground.relays.is_empty() {
            match try_docker(&[what, &format!("embermesh-{}-{id}", ground.mesh.place.cluster)]) {
                Ok(_) => return Ok(container(How::Docker(what))),
                Err(said) => why = said,
            }
        } else if what == "pause" {
            return Ok(container(How::Held(*pid, Some(Hold::of(*pid)))));
        } else if end(*pid) {
            return Ok(container(How::Ended(*pid)));
        }
    }
    Err(why)
}

/// Those of the process engine that are not paused.
fn processes(ground: &Ground) -> Vec<Found> {
    let of_mesh = ground.mesh.place.processes().into_iter().filter(|process| process.state != 'T');
    let found = of_mesh.filter_map(|process| {
        process.args.split(' ').nth(1).filter(|command| *command == "__container")?;
        let environment = fs::read_to_string(format!("/proc/{}/environ", process.pid)).ok()?;
        let id = environment.split('\0').find_map(|entry| entry.strip_prefix("__EMBERMESH_CONTAINER="))?;
        Some(Found { owner: owner(id)?, id: id.to_owned(), pid: process.pid })
    });
    found.collect()
}

fn of_docker(ground: &Ground) -> Result<Vec<Found>, String> {
    let cluster = &ground.mesh.place.cluster;
    let label = format!("label=embermesh.cluster={cluster}");
    let listed =
        try_docker(&["ps", "--no-trunc", "--filter", &label, "--filter", "status=running", "--format", "{{.Names}}"])?;
    let found = listed.lines().filter_map(|name| {
        let id = name.strip_prefix(&format!("embermesh-{cluster}-"))?;
        Some(Found { owner: owner(id)?, id: id.to_owned(), pid: 0 })
    });
    Ok(found.collect())
}

/// A container's id begins with that of its node.
fn owner(id: &str) -> Option<usize> {
    id.strip_prefix('n')?.split('-').next()?.parse().ok()
}

impl Container {
    pub(crate) fn look(&mut self) {
        self.seen += u32::from(match &self.how {
            How::Held(pid, _) => state(*pid) == Some('T'),
            How::Ended(pid) => matches!(state(*pid), None | Some('Z')),
            How::Docker(_) => true,
        });
    }

    /// Lets it go on, if it was held; one of Docker's is left to its agent.
    pub(crate) fn go_on(mut self) -> Result<String, String> {
        self.look();
        let what = match &mut self.how {
            How::Held(_, hold) => {
                hold.take();
                "stopped"
            }
            How::Ended(_) => "ended",
            How::Docker("kill") => "killed by `docker kill`",
            How::Docker(_) => "paused by `docker pause`",
        };
        if self.seen > 0 { Ok(format!("{} was {what}", self.id)) } else { Err(format!("{} was not {what}", self.id)) }
    }
}
