//! Actions that ship with Embermesh, to try it and to test it: what the `builtin` runtime serves.
//!
//! `/init`'s `main` picks one ([`names`]); `echo` when it is empty. Each answers with proof of where it ran:
//!
//! | field | meaning |
//! | --- | --- |
//! | `container`, `node` | the container's id and its owner's, as the agent told them |
//! | `pid` | the serving process, as the host numbers it |
//! | `running`, `peak` | runs in progress in this container at that moment, this one included; the most so far |
//! | `activation_id` | as it came with `/run` |
//! | `started_at_us` | when the container's process started, Unix microseconds |
//!
//! and each takes `log`: a text to log, or how many lines of one to write. `sleep` takes `ms`, and `until`: it ends
//! as soon as so many of them were asleep at once, `ms` is then the longest that it waits for the others. `note` takes
//! `ms`, and `file` to write down there when it began and ended.

mod fail;
mod note;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::Context;
use crate::contract::{CONTAINER_VARIABLE, NODE_VARIABLE};
use crate::sdk::{ActionError, Handler, Outcome};
use crate::server::Task;

/// Lines that one run writes at most when `log` is a number.
const MAX_LOG_LINES: u64 = 100_000;

/// Every built-in action, by the name that `main` gives.
pub fn names() -> &'static [&'static str] {
    &["echo", "sleep", "cpu", "note", "fail", "fail-init", "hang-init"]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Example {
    Echo,
    Sleep,
    Cpu,
    Note,
    Fail,
}

/// The built-in actions; one of them for good after `/init`.
#[derive(Debug)]
pub(crate) struct Examples {
    place: Arc<Place>,
    chosen: OnceLock<Example>,
    bedroom: Arc<Bedroom>,
}

/// Who is asleep in this process.
#[derive(Debug, Default)]
struct Bedroom {
    asleep: AtomicU32,
    /// The most at once since nobody was.
    most: watch::Sender<u32>,
}

/// Where this process is.
#[derive(Debug)]
struct Place {
    container: String,
    node: String,
    pid: u32,
    started_at_us: u64,
}

impl Examples {
    /// To be made when the process starts: that moment is part of each answer.
    pub(crate) fn new() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let place = Place {
            container: std::env::var(CONTAINER_VARIABLE).unwrap_or_default(),
            node: std::env::var(NODE_VARIABLE).unwrap_or_default(),
            pid: host_pid(),
            started_at_us: u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX),
        };
        Self { place: Arc::new(place), chosen: OnceLock::new(), bedroom: Arc::default() }
    }
}

impl Bedroom {
    /// Sleeps for `time`, or until so many have been asleep at once.
    async fn sleep(&self, time: Duration, until: Option<u32>) {
        let asleep = self.asleep.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.send_if_modified(|most| std::mem::replace(most, asleep.max(*most)) < asleep);
        let mut most = self.most.subscribe();
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            _ = most.wait_for(|most| until.is_some_and(|until| *most >= until)) => {}
        }
        if self.asleep.fetch_sub(1, Ordering::Relaxed) == 1 {
            // The next ones wait for one another anew.
            self.most.send_replace(0);
        }
    }
}

impl Handler for Examples {
    fn init<'a>(&'a self, main: &'a str, env: &'a BTreeMap<String, String>) -> Task<'a, Result<(), String>> {
        Box::pin(async move {
            // An init parameter `init` makes any of them fail to start, so that one action can be turned bad by an update.
            let told = env.get("init").map(String::as_str);
            let name = told.filter(|told| matches!(*told, "fail-init" | "hang-init")).unwrap_or(main);
            let example = match name {
                "" | "main" | "echo" => Example::Echo,
                "sleep" => Example::Sleep,
                "cpu" => Example::Cpu,
                "note" => Example::Note,
                "fail" => Example::Fail,
                "fail-init" => return Err("told to fail at initialisation".to_owned()),
                "hang-init" => std::future::pending().await,
                unknown => {
                    return Err(format!("there is no built-in action {unknown:?}; there are {}", names().join(", ")));
                }
            };
            self.chosen.get_or_init(|| example);
            Ok(())
        })
    }

    fn call(&self, context: Context, params: Value) -> Task<'static, Result<Outcome, ActionError>> {
        let (place, bedroom) = (self.place.clone(), self.bedroom.clone());
        let example = self.chosen.get().copied().unwrap_or(Example::Echo);
        Box::pin(async move {
            write_log(&context, &params);
            match example {
                Example::Echo => {
                    let mut result = proof(&place, &context);
                    result.insert("echo".to_owned(), params);
                    Ok(Outcome::Result(Value::Object(result)))
                }
                Example::Sleep => {
                    let ms = number(&params, "ms", 0);
                    let until = Some(number(&params, "until", 0)).filter(|until| *until > 0);
                    bedroom.sleep(Duration::from_millis(ms), until.map(|n| u32::try_from(n).unwrap_or(u32::MAX))).await;
                    Ok(with_proof(&place, &context, json!({ "slept_ms": ms })))
                }
                Example::Cpu => {
                    let ms = number(&params, "ms", 10);
                    // Off the server's thread, which has other runs to serve.
                    let rounds = tokio::task::spawn_blocking(move || burn(Duration::from_millis(ms))).await?;
                    Ok(with_proof(&place, &context, json!({ "busy_ms": ms, "rounds": rounds })))
                }
                Example::Note => note::note(&place, &context, &params).await,
                Example::Fail => fail::fail(&params, proof(&place, &context)).await,
            }
        })
    }
}

fn with_proof(place: &Place, context: &Context, result: Value) -> Outcome {
    let mut fields = proof(place, context);
    if let Value::Object(result) = result {
        fields.extend(result);
    }
    Outcome::Result(Value::Object(fields))
}

fn proof(place: &Place, context: &Context) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("container".to_owned(), place.container.as_str().into());
    fields.insert("node".to_owned(), place.node.as_str().into());
    fields.insert("pid".to_owned(), place.pid.into());
    fields.insert("running".to_owned(), context.running().into());
    fields.insert("peak".to_owned(), context.peak().into());
    fields.insert("activation_id".to_owned(), context.activation_id().into());
    fields.insert("started_at_us".to_owned(), place.started_at_us.into());
    fields
}

fn write_log(context: &Context, params: &Value) {
    match params.get("log") {
        Some(Value::String(text)) => context.log(text),
        Some(Value::Number(lines)) => {
            for line in 1..=lines.as_u64().unwrap_or(0).min(MAX_LOG_LINES) {
                context.log(format!("line {line}"));
            }
        }
        _ => {}
    }
}

fn number(params: &Value, key: &str, default: u64) -> u64 {
    match params.get(key) {
        // `-p ms 10` arrives as a number, a shell's quoting may make it a text.
        Some(Value::String(text)) => text.parse().unwrap_or(default),
        Some(value) => value.as_u64().unwrap_or(default),
        None => default,
    }
}

/// Keeps a core busy for `time`; returns how much it got done.
fn burn(time: Duration) -> u64 {
    const ROUNDS_PER_LOOK: u64 = 1000;
    let end = Instant::now() + time;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut rounds = 0;
    while Instant::now() < end {
        for _ in 0..ROUNDS_PER_LOOK {
            state = std::hint::black_box(state ^ (state << 7) ^ (state >> 9));
        }
        rounds += ROUNDS_PER_LOOK;
    }
    rounds
}

/// This process's number outside its PID namespace: the mounted procfs is the host's.
fn host_pid() -> u32 {
    let link = std::fs::read_link("/proc/self").ok();
    link.and_then(|link| link.to_str()?.parse().ok()).unwrap_or_else(std::process::id)
}

#[cfg(test)]
mod tests;
