//! Runs a handler for `/run`: builds its context, survives its panics, turns what it gives into an answer.

use std::any::Any;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::ActionError;
use crate::Context;
use crate::contract::{InitRequest, MAX_RESULT_BYTES, RESULT_TOO_LARGE};
use crate::gate::Gate;
use crate::server::{Answer, Call, Initialised, Target, Task};

/// A handler as the server calls it: the user's function, or the built-in examples.
pub(crate) trait Handler: Send + Sync + 'static {
    fn init<'a>(&'a self, main: &'a str, env: &'a BTreeMap<String, String>) -> Task<'a, Result<(), String>>;

    fn call(&self, context: Context, params: Value) -> Task<'static, Result<Outcome, ActionError>>;
}

/// What a handler gives.
pub(crate) enum Outcome {
    Result(Value),
    /// Bytes to answer with as they are, rubbish or not.
    Raw(Bytes),
}

pub(crate) fn from_fn<H, F>(function: H) -> impl Handler
where
    H: Fn(Context, Value) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Value, ActionError>> + Send + 'static,
{
    FromFn(function)
}

struct FromFn<H>(H);

impl<H, F> Handler for FromFn<H>
where
    H: Fn(Context, Value) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Value, ActionError>> + Send + 'static,
{
    fn init<'a>(&'a self, _: &'a str, _: &'a BTreeMap<String, String>) -> Task<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn call(&self, context: Context, params: Value) -> Task<'static, Result<Outcome, ActionError>> {
        let future = (self.0)(context, params);
        Box::pin(async move { future.await.map(Outcome::Result) })
    }
}

pub(crate) struct HandlerTarget<H> {
    handler: H,
    gate: Arc<Gate>,
    env: OnceLock<Arc<BTreeMap<String, String>>>,
}

impl<H: Handler> HandlerTarget<H> {
    pub(crate) fn new(handler: H, gate: Arc<Gate>) -> Self {
        Self { handler, gate, env: OnceLock::new() }
    }
}

impl<H: Handler> Target for HandlerTarget<H> {
    fn init<'a>(&'a self, init: &'a InitRequest<'a>) -> Task<'a, Result<Initialised, String>> {
        Box::pin(async move {
            let env = self.env.get_or_init(|| Arc::new(init.env()));
            self.handler.init(init.main.as_str(), env).await?;
            Ok(Initialised::default())
        })
    }

    fn run<'a>(&'a self, call: Call<'a>) -> Task<'a, Answer> {
        Box::pin(async move {
            let answer = match params(&call) {
                Ok(params) => {
                    let env = self.env.get().cloned().unwrap_or_default();
                    let context = Context::new(&call.request, env, self.gate.clone(), call.log.clone());
                    self.answer(context, params).await
                }
                Err(answer) => answer,
            };
            answer.with_lines(call.log.close())
        })
    }
}

impl<H: Handler> HandlerTarget<H> {
    async fn answer(&self, context: Context, params: Value) -> Answer {
        match catch_panic(|| self.handler.call(context.clone(), params)).await {
            Ok(Ok(Outcome::Result(value))) => encode(&value),
            Ok(Ok(Outcome::Raw(bytes))) => Answer::new(200, bytes),
            Ok(Err(ActionError::Application(error))) => encode(&json!({ "error": error })),
            Ok(Err(ActionError::Failed(reason))) => {
                context.log_err(&reason);
                Answer::error(502, reason)
            }
            Err(panic) => {
                let reason = format!("the handler panicked: {panic}");
                context.log_err(&reason);
                Answer::error(502, reason)
            }
        }
    }
}

fn params(call: &Call<'_>) -> Result<Value, Answer> {
    let Some(raw) = call.request.value else { return Ok(Value::Object(Map::new())) };
    match serde_json::from_str(raw.get()) {
        Ok(Value::Null) => Ok(Value::Object(Map::new())),
        Ok(params) => Ok(params),
        Err(e) => Err(Answer::error(400, format!("the parameters cannot be read: {e}"))),
    }
}

fn encode(value: &Value) -> Answer {
    if !value.is_object() && !value.is_array() {
        return Answer::error(502, format!("the action did not return an object or array but {}", kind(value)));
    }
    match serde_json::to_vec(value) {
        Ok(body) if body.len() > MAX_RESULT_BYTES => too_large(body.len()),
        Ok(body) => Answer::new(200, body),
        Err(e) => Answer::error(502, format!("the action's result cannot be written as JSON: {e}")),
    }
}

pub(crate) fn too_large(bytes: usize) -> Answer {
    let limit = MAX_RESULT_BYTES;
    let text = format!("the action's result has {bytes} bytes, more than the {limit} that are passed on: return less");
    Answer::error(RESULT_TOO_LARGE, text)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Makes and drives a future; a panic in either is the error, by its message. Nothing of the
/// future is looked at again after a panic, so that it needn't be unwind-safe.
async fn catch_panic<T>(start: impl FnOnce() -> Task<'static, T>) -> Result<T, String> {
    let mut future = catch_unwind(AssertUnwindSafe(start)).map_err(message)?;
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(message(panic))),
    })
    .await
}

fn message(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast_ref::<&str>().map_or_else(|| "no message".to_owned(), |text| (*text).to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::lines::Captured;
    use crate::server::Server;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    async fn call<H, F>(handler: H, body: Value) -> (Answer, String, String)
    where
        H: Fn(Context, Value) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Value, ActionError>> + Send + 'static,
    {
        let (out, err, lines) = Captured::pair(true);
        let gate = Gate::new(1);
        let server = Server::new(gate.clone(), lines, Box::new(HandlerTarget::new(from_fn(handler), gate)));
        let init = server.init(Bytes::from_static(br#"{"value":{"env":{"colour":"red"}}}"#)).await;
        assert_eq!(init.status, 200);
        let answer = server.run(Bytes::from(body.to_string())).await;
        assert_eq!(server.gate.running(), 0, "the run's place is free again");
        (answer, out.text(), err.text())
    }

    fn body(answer: &Answer) -> Value {
        serde_json::from_slice(&answer.body).unwrap()
    }

    #[tokio::test]
    async fn the_context_tells_the_activation_and_its_lines_are_counted() {
        let deadline = u64::MAX / 2;
        let request = json!({"value": {"n": 1}, "activation_id": ID, "namespace": "guest", "action_name": "/guest/a",
            "action_version": "0.0.2", "transaction_id": "t1", "deadline": deadline.to_string()});
        let (answer, out, err) = call(
            move |ctx, params| async move {
                ctx.log("to stdout");
                ctx.log_err("to stderr");
                assert!(ctx.remaining().as_secs() > 60);
                Ok(json!({"id": ctx.activation_id(), "ns": ctx.namespace(), "name": ctx.action_name(),
                    "version": ctx.action_version(), "tid": ctx.transaction_id(), "deadline": ctx.deadline_ms(),
                    "env": ctx.env(), "running": ctx.running(), "params": params}))
            },
            request,
        )
        .await;
        assert_eq!((answer.status, answer.log_lines), (200, Some(2)));
        assert_eq!(
            body(&answer),
            json!({"id": ID, "ns": "guest", "name": "/guest/a", "version": "0.0.2", "tid": "t1", "deadline": deadline,
                "env": {"colour": "red"}, "running": 1, "params": {"n": 1}})
        );
        assert!(out.starts_with(&format!("\x1e{ID}\x1fto stdout\n\x1e{ID}\x1fXXX_THE_END")), "{out:?}");
        assert!(err.starts_with(&format!("\x1e{ID}\x1fto stderr\n\x1e{ID}\x1fXXX_THE_END")), "{err:?}");
    }

    #[tokio::test]
    async fn a_panic_is_a_502_and_the_log_ends_all_the_same() {
        let (answer, out, err) = call(
            |_, params| async move {
                assert!(params.is_null(), "told to");
                Ok(Value::Null)
            },
            json!({"activation_id": ID}),
        )
        .await;
        assert_eq!(answer.status, 502);
        assert!(body(&answer)["error"].as_str().unwrap().contains("panicked: told to"));
        assert!(out.contains("XXX_THE_END") && err.contains("told to"), "{out:?} {err:?}");
    }

    #[tokio::test]
    async fn an_application_error_is_a_200_and_a_failure_a_502() {
        let (answer, ..) = call(|_, _| async { Err(ActionError::application("no")) }, json!({})).await;
        assert_eq!((answer.status, body(&answer)), (200, json!({"error": "no"})));
        let failing = |_, _| async { Ok(json!({ "n": "x".parse::<u8>()? })) };
        let (answer, ..) = call(failing, json!({})).await;
        assert_eq!((answer.status, body(&answer)), (502, json!({"error": "invalid digit found in string"})));
    }

    #[tokio::test]
    async fn a_result_that_is_no_object_or_array_is_a_502_and_one_too_large_a_507() {
        let (answer, ..) = call(|_, _| async { Ok(json!("text")) }, json!({})).await;
        assert_eq!(answer.status, 502);
        assert!(body(&answer)["error"].as_str().unwrap().contains("but a string"));
        let (answer, ..) = call(|_, _| async { Ok(json!([1])) }, json!({})).await;
        assert_eq!((answer.status, body(&answer)), (200, json!([1])));
        let (answer, ..) = call(|_, _| async { Ok(json!(["x".repeat(MAX_RESULT_BYTES)])) }, json!({})).await;
        assert_eq!(answer.status, RESULT_TOO_LARGE);
        assert!(body(&answer)["error"].as_str().unwrap().contains("return less"));
    }

    #[tokio::test]
    async fn one_that_was_adopted_counts_its_runs_and_refuses_older_agents() {
        let (_, _, lines) = Captured::pair(true);
        let gate = Gate::new(2);
        let (let_go, held) = tokio::sync::watch::channel(false);
        let handler = from_fn(move |_: Context, _: Value| {
            let mut held = held.clone();
            async move {
                held.wait_for(|free| *free).await.ok();
                Ok::<_, ActionError>(json!({}))
            }
        });
        let server = Server::new(gate.clone(), lines, Box::new(HandlerTarget::new(handler, gate)));
        assert_eq!(server.adopt(Some(4)).await.status, 409, "one that is not initialised is of no use");
        server.init_by(Some(5), Bytes::from_static(b"{}")).await;
        let running = tokio::spawn({
            let server = server.clone();
            async move { server.run_by(Some(5), Bytes::from_static(b"{}")).await }
        });
        while server.gate.running() == 0 {
            tokio::task::yield_now().await;
        }
        let adopted = server.adopt(Some(6)).await;
        assert_eq!((adopted.status, body(&adopted)), (200, json!({"running": 1})));
        for refused in [server.run_by(Some(5), Bytes::from_static(b"{}")).await, server.adopt(Some(5)).await] {
            assert_eq!(refused.status, 409);
            assert!(body(&refused)["error"].as_str().unwrap().contains("epoch 6"));
        }
        let_go.send(true).unwrap();
        assert_eq!(running.await.unwrap().status, 200, "what ran goes on to its end");
        assert_eq!(body(&server.adopt(Some(6)).await), json!({"running": 0}));
        assert_eq!(server.run_by(Some(6), Bytes::from_static(b"{}")).await.status, 200);
        assert_eq!(server.adopt(None).await.status, 400);
    }

    #[tokio::test]
    async fn a_run_over_the_limit_is_refused_while_another_is_in_progress() {
        let (_, _, lines) = Captured::pair(true);
        let gate = Gate::new(1);
        let handler = from_fn(|ctx: Context, _| async move {
            ctx.log("started");
            std::future::pending().await
        });
        let server = Server::new(gate.clone(), lines, Box::new(HandlerTarget::new(handler, gate)));
        server.init(Bytes::from_static(b"{}")).await;
        let running = server.run(Bytes::from_static(b"{}"));
        tokio::pin!(running);
        assert!(futures_poll_once(&mut running).await, "the first run goes on");
        assert_eq!(server.run(Bytes::from_static(b"{}")).await.status, 403);
    }

    /// Polls once; true if it is still pending.
    async fn futures_poll_once<F: Future + Unpin>(future: &mut F) -> bool {
        let mut future = std::pin::Pin::new(future);
        poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await
    }
}
