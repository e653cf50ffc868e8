//! A node's HTTP API, over plain blocking sockets: one connection a call.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// The longest that any call of a test may take: an activation waits for at most 60 s in its queue.
const PATIENCE: Duration = Duration::from_secs(75);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Api(pub(crate) SocketAddr);

/// What a node answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

/// What came of a blocking invocation: mostly what the action itself said.
#[derive(Debug, Clone)]
pub(crate) struct Ran {
    pub(crate) status: u16,
    pub(crate) activation_id: String,
    pub(crate) record: Value,
    pub(crate) result: Value,
}

impl Api {
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.call("GET", path, b"")
    }

    pub(crate) fn delete(&self, path: &str) -> Answer {
        self.call("DELETE", path, b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.call("POST", path, body.to_string().as_bytes())
    }

    pub(crate) fn put(&self, path: &str, body: &Value) -> Answer {
        self.call("PUT", path, body.to_string().as_bytes())
    }

    #[track_caller]
    pub(crate) fn call(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        match self.try_call(method, path, body) {
            Ok(answer) => answer,
            Err(error) => panic!("{method} {path} at {} got no answer: {error}", self.0),
        }
    }

    pub(crate) fn try_call(&self, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
        self.try_call_within(PATIENCE, method, path, body)
    }

    /// The same, of a node that may not answer.
    pub(crate) fn try_call_within(
        &self,
        patience: Duration,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> io::Result<Answer> {
        let mut stream = self.send(method, path, body)?;
        stream.set_read_timeout(Some(patience))?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        let cut = || io::Error::new(io::ErrorKind::UnexpectedEof, String::from_utf8_lossy(&all).into_owned());
        let end = all.windows(4).position(|window| window == b"\r\n\r\n").ok_or_else(cut)?;
        let head = String::from_utf8_lossy(&all[..end]).to_lowercase();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(cut)?;
        let body = all[end + 4..].to_vec();
        let answer = Answer { status, head, body };
        let complete = answer.header("content-length").is_none_or(|bytes| bytes == answer.body.len().to_string());
        if complete { Ok(answer) } else { Err(cut()) }
    }

    /// Sends a call and leaves its answer to be read; dropping the stream is hanging up.
    pub(crate) fn send(&self, method: &str, path: &str, body: &[u8]) -> io::Result<TcpStream> {
        let connected = TcpStream::connect_timeout(&self.0, PATIENCE);
        let mut stream = connected.map_err(|error| io::Error::new(io::ErrorKind::NotConnected, error))?;
        if stream.local_addr()? == self.0 {
            // Nobody listens yet, and the port that was picked for this end is the other one.
            return Err(io::ErrorKind::NotConnected.into());
        }
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.0,
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        Ok(stream)
    }

    /// Runs an action and waits for its end.
    #[track_caller]
    pub(crate) fn invoke(&self, action: &str, params: &Value) -> Ran {
        self.post(&blocking(action), params).into_ran()
    }

    /// The same, of one that is to succeed.
    #[track_caller]
    pub(crate) fn run(&self, action: &str, params: &Value) -> Ran {
        let mut ran = self.invoke(action, params);
        for _ in 0..3 {
            // A machine on which Docker stood still for seconds: no container could be started for it.
            if ran.status != 500 || !ran.record.to_string().contains("did not answer") {
                break;
            }
            thread::sleep(Duration::from_secs(1));
            ran = self.invoke(action, params);
        }
        assert_eq!(ran.status, 200, "{action} at {}: {}", self.0, ran.record);
        ran
    }

    /// Creates a built-in action with 128 MB of memory.
    #[track_caller]
    pub(crate) fn create_builtin(&self, name: &str, main: &str, concurrency: u32) {
        self.create(
            name,
            &json!({"exec": {"kind": "builtin:1", "main": main}, "limits": {"memory": 128, "concurrency": concurrency}}),
        );
    }

    #[track_caller]
    pub(crate) fn create(&self, name: &str, action: &Value) {
        self.put(&action_path(name), action).expect(200);
    }

    pub(crate) fn status(&self) -> Value {
        self.get("/mesh/v1/status").expect(200)
    }

    /// The node's own containers.
    pub(crate) fn containers(&self) -> Vec<Value> {
        list(&self.get("/mesh/v1/containers").expect(200), "containers")
    }

    pub(crate) fn held_leases(&self) -> Vec<Value> {
        list(&self.get("/mesh/v1/leases").expect(200), "held")
    }

    pub(crate) fn granted_leases(&self) -> Vec<Value> {
        list(&self.get("/mesh/v1/leases").expect(200), "granted")
    }

    /// Each known node's id and state.
    pub(crate) fn members(&self) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let members = list(&self.get("/mesh/v1/members").expect(200), "members");
        members.iter().map(|member| (text(&member["node_id"]), text(&member["state"]))).collect()
    }

    pub(crate) fn member_state(&self, node: &str) -> Option<String> {
        self.members().into_iter().find(|(id, _)| id == node).map(|(_, state)| state)
    }

    /// An activation's record, once it is there.
    #[track_caller]
    pub(crate) fn record(&self, activation_id: &str) -> Value {
        let path = format!("/api/v1/namespaces/_/activations/{activation_id}");
        super::soon("the activation's record is there", || {
            let answer = self.get(&path);
            (answer.status == 200).then(|| answer.json())
        })
    }

    /// Events from now on, as they come.
    pub(crate) fn events(&self) -> impl Iterator<Item = Value> + use<> {
        let mut lines = BufReader::new(self.send("GET", "/mesh/v1/events", b"").unwrap()).lines();
        // The head is there once the node listens.
        assert!(lines.next().unwrap().unwrap().contains("200"));
        lines.map_while(Result::ok).filter_map(|line| serde_json::from_str(line.strip_prefix("data:")?).ok())
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let prefix = format!("{name}: ");
        self.head.lines().find_map(|line| line.strip_prefix(&prefix))
    }

    /// `Null` for what is no JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The error that a refusal tells; empty without one.
    pub(crate) fn error(&self) -> String {
        self.json()["error"].as_str().unwrap_or_default().to_owned()
    }

    /// Its JSON, if it has that status.
    #[track_caller]
    pub(crate) fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self}");
        self.json()
    }

    /// Its error, if it is a refusal with that status in the shape that clients expect.
    #[track_caller]
    pub(crate) fn refusal(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self}");
        assert!(self.json()["code"].is_string() && !self.error().is_empty(), "{self}");
        self.error()
    }

    pub(crate) fn into_ran(self) -> Ran {
        let record = self.json();
        let activation_id = self.header("x-openwhisk-activation-id").unwrap_or_default().to_owned();
        Ran { status: self.status, activation_id, result: record["response"]["result"].clone(), record }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = String::from_utf8_lossy(&self.body);
        write!(f, "{} {}", self.status, body.chars().take(2000).collect::<String>())
    }
}

impl Ran {
    /// Where it ran, as the action says.
    #[track_caller]
    pub(crate) fn container(&self) -> &str {
        self.text("container")
    }

    /// The node whose container it was, as the action says.
    #[track_caller]
    pub(crate) fn node(&self) -> &str {
        self.text("node")
    }

    #[track_caller]
    pub(crate) fn number(&self, field: &str) -> u64 {
        self.result[field].as_u64().unwrap_or_else(|| panic!("no number `{field}` in {}", self.record))
    }

    #[track_caller]
    pub(crate) fn text(&self, field: &str) -> &str {
        self.result[field].as_str().unwrap_or_else(|| panic!("no text `{field}` in {}", self.record))
    }

    /// The error in the result of one that failed.
    #[track_caller]
    pub(crate) fn error(&self) -> &str {
        self.text("error")
    }

    pub(crate) fn annotation(&self, key: &str) -> Value {
        annotation(&self.record, key)
    }
}

pub(crate) fn annotation(record: &Value, key: &str) -> Value {
    let all = record["annotations"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|annotation| annotation["key"] == key).map_or(Value::Null, |found| found["value"].clone())
}

pub(crate) fn action_path(name: &str) -> String {
    format!("/api/v1/namespaces/_/actions/{name}")
}

/// What an operator asks of a container: `pause` or `remove`.
pub(crate) fn container_path(container: &str, what: &str) -> String {
    format!("/mesh/v1/containers/{container}/{what}")
}

pub(crate) fn blocking(action: &str) -> String {
    format!("{}?blocking=true", action_path(action))
}

fn list(value: &Value, field: &str) -> Vec<Value> {
    value[field].as_array().cloned().unwrap_or_else(|| panic!("no list `{field}` in {value}"))
}
