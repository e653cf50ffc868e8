//! Lines that containers write, on their way to activation records.
//!
//! A runtime puts `\x1e<32 hex digits>\x1f` before a line that belongs to an activation, and closes both
//! streams of an activation that wrote any with an end mark. Everything else is a line that belongs to nobody.

use tokio::io::{AsyncRead, AsyncReadExt};

/// Written by a runtime on both streams when an activation has written its last line.
pub const END_MARK: &str = "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX";
/// Longer lines are cut.
pub const MAX_LINE_BYTES: usize = 64 * 1024;

const START: u8 = b'\x1e';
const ID_DIGITS: usize = 32;
/// `\x1e`, the id, `\x1f`.
const FRAME_BYTES: usize = ID_DIGITS + 2;
const READ_BYTES: usize = 8 * 1024;

/// Which stream a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Takes lines as the engine reads them. Called from the reader's task: must not block.
pub trait LogSink: Send + Sync + std::fmt::Debug {
    /// One line without its newline. `activation` is the 32 hex digits that a runtime put before it, if any.
    fn line(&self, stream: Stream, activation: Option<&str>, text: &str);
    /// The runtime said that `activation` wrote its last line on this stream.
    fn end(&self, stream: Stream, activation: &str);
}

/// Reads `source` to its end or first error and hands each line to `sink`.
pub async fn read_lines(mut source: impl AsyncRead + Unpin, stream: Stream, sink: &dyn LogSink) {
    let mut parser = LineParser::new(stream);
    let mut chunk = vec![0; READ_BYTES];
    while let Ok(read @ 1..) = source.read(&mut chunk).await {
        parser.feed(&chunk[..read], sink);
    }
    parser.finish(sink);
}

/// Cuts a stream of bytes into lines, at whatever places the bytes come in parts.
#[derive(Debug)]
pub struct LineParser {
    stream: Stream,
    line: Vec<u8>,
    /// The line was too long: what follows, up to its end, is dropped.
    cut: bool,
}

impl LineParser {
    pub fn new(stream: Stream) -> Self {
        Self { stream, line: Vec::new(), cut: false }
    }

    pub fn feed(&mut self, bytes: &[u8], sink: &dyn LogSink) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            match piece.split_last() {
                Some((b'\n', text)) => {
                    self.append(text, sink);
                    self.finish_line(sink);
                }
                _ => self.append(piece, sink),
            }
        }
    }

    /// The stream is over: a last line without its newline is a line as well.
    pub fn finish(&mut self, sink: &dyn LogSink) {
        if !self.line.is_empty() {
            self.finish_line(sink);
        }
    }

    fn append(&mut self, mut bytes: &[u8], sink: &dyn LogSink) {
        if self.cut {
            // The end mark of an activation must not be lost behind somebody's endless line.
            let Some(at) = bytes.iter().position(|byte| *byte == START) else { return };
            self.finish_line(sink);
            bytes = &bytes[at..];
        }
        let room = MAX_LINE_BYTES + FRAME_BYTES - self.line.len();
        if bytes.len() <= room {
            self.line.extend_from_slice(bytes);
        } else {
            self.line.extend_from_slice(&bytes[..room]);
            self.cut = true;
            self.append(&bytes[room..], sink);
        }
    }

    fn finish_line(&mut self, sink: &dyn LogSink) {
        let line = std::mem::take(&mut self.line);
        self.cut = false;
        // What runs beside the handler may leave a line open, on which a framed line then follows.
        match frame_position(&line) {
            Some(at) => {
                if at > 0 {
                    self.emit(None, &line[..at], sink);
                }
                let id = String::from_utf8_lossy(&line[at + 1..=at + ID_DIGITS]);
                self.emit(Some(&id), &line[at + FRAME_BYTES..], sink);
            }
            None => self.emit(None, &line, sink),
        }
        // Most lines are short: keep the buffer for the next one, unless one was huge.
        if line.capacity() <= READ_BYTES {
            self.line = line;
            self.line.clear();
        }
    }

    fn emit(&self, activation: Option<&str>, text: &[u8], sink: &dyn LogSink) {
        let text = String::from_utf8_lossy(&text[..text.len().min(MAX_LINE_BYTES)]);
        match activation {
            Some(id) if text == END_MARK => sink.end(self.stream, id),
            _ => sink.line(self.stream, activation, &text),
        }
    }
}

/// Where the first whole `\x1e<id>\x1f` starts.
fn frame_position(line: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(found) = line[from..].iter().position(|byte| *byte == START) {
        let at = from + found;
        let frame = line.get(at..at + FRAME_BYTES)?;
        let digits = &frame[1..=ID_DIGITS];
        if frame[FRAME_BYTES - 1] == b'\x1f' && digits.iter().all(|d| matches!(d, b'0'..=b'9' | b'a'..=b'f')) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

#[cfg(test)]
mod tests;
