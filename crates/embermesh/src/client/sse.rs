//! Server-sent events: `data:` lines, one empty line after each event. Names, ids and comments (which
//! keep the connection alive) mean nothing here.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::ClientError;

/// Longest event; a node's are a few hundred bytes.
const MAX_EVENT_BYTES: usize = 1 << 20;

/// The events of one connection, in their order.
#[derive(Debug)]
pub(crate) struct EventStream {
    base: String,
    body: Incoming,
    parser: Parser,
}

impl EventStream {
    pub(super) fn new(base: String, body: Incoming) -> Self {
        Self { base, body, parser: Parser::default() }
    }

    /// The next event's data; `None` when the node ended the stream. Waits as long as nothing happens.
    /// Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<String>, ClientError> {
        loop {
            if let Some(data) = self.parser.next().map_err(|detail| self.malformed(detail))? {
                return Ok(Some(data));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        self.parser.push(&bytes);
                    }
                }
                Some(Err(e)) => return Err(ClientError::from_body(&self.base, &e, MAX_EVENT_BYTES)),
            }
        }
    }

    fn malformed(&self, detail: String) -> ClientError {
        ClientError::Malformed { base: self.base.clone(), detail }
    }
}

/// Bytes in, events out.
#[derive(Debug, Default)]
struct Parser {
    /// What came after the last whole line.
    rest: Vec<u8>,
    /// How much of `rest` is known to hold no line end.
    scanned: usize,
    data: Option<String>,
}

impl Parser {
    fn push(&mut self, bytes: &Bytes) {
        self.rest.extend_from_slice(bytes);
    }

    /// The next whole event's data, if there is one.
    fn next(&mut self) -> Result<Option<String>, String> {
        while let Some(end) = self.rest[self.scanned..].iter().position(|b| *b == b'\n') {
            let mut line: Vec<u8> = self.rest.drain(..=self.scanned + end).collect();
            self.scanned = 0;
            line.pop();
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            if line.is_empty() {
                if let Some(data) = self.data.take() {
                    return Ok(Some(data));
                }
            } else if let Some(value) = line.strip_prefix(b"data:") {
                self.add(value.strip_prefix(b" ").unwrap_or(value))?;
            }
        }
        self.scanned = self.rest.len();
        if self.rest.len() > MAX_EVENT_BYTES {
            return Err(format!("an event's line is longer than {MAX_EVENT_BYTES} bytes"));
        }
        Ok(None)
    }

    fn add(&mut self, value: &[u8]) -> Result<(), String> {
        let value = std::str::from_utf8(value).map_err(|e| format!("an event is not UTF-8: {e}"))?;
        match &mut self.data {
            Some(data) => {
                data.push('\n');
                data.push_str(value);
            }
            None => self.data = Some(value.to_owned()),
        }
        match &self.data {
            Some(data) if data.len() > MAX_EVENT_BYTES => {
                Err(format!("an event is longer than {MAX_EVENT_BYTES} bytes"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// All events of a text that arrives in pieces of that size.
    fn events(text: &str, piece_bytes: usize) -> Vec<String> {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for piece in text.as_bytes().chunks(piece_bytes) {
            parser.push(&Bytes::copy_from_slice(piece));
            while let Some(event) = parser.next().unwrap() {
                events.push(event);
            }
        }
        events
    }

    #[test]
    fn events_are_the_same_however_their_bytes_arrive() {
        let text = ": hello\n\nevent: x\nid: 1\ndata: {\"a\":\ndata: 1}\n\ndata:two\r\n\r\ndata: ü\n\ndata: cut off\n";
        for piece_bytes in 1..text.len() {
            assert_eq!(events(text, piece_bytes), ["{\"a\":\n1}", "two", "ü"], "in pieces of {piece_bytes}");
        }
    }

    #[test]
    fn an_event_without_end_is_an_error_and_not_a_full_memory() {
        let mut parser = Parser::default();
        parser.push(&Bytes::from(vec![b'x'; MAX_EVENT_BYTES + 1]));
        assert!(parser.next().unwrap_err().contains("longer"));

        let mut parser = Parser::default();
        let line = format!("data: {}\n", "x".repeat(MAX_EVENT_BYTES / 2));
        parser.push(&Bytes::from(line.repeat(3)));
        assert!(parser.next().unwrap_err().contains("longer"));
    }
}
