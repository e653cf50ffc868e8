//! Cuts a byte stream into lines of bounded length.

/// What the stream held next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Text(Vec<u8>),
    /// A line over the bound, dropped; with its length.
    TooLong(usize),
}

#[derive(Debug)]
pub(super) struct LineBuffer {
    bytes: Vec<u8>,
    /// Up to here there is no newline.
    searched: usize,
    /// Bytes of a line that were dropped since it is over the bound.
    dropped: usize,
    limit: usize,
}

impl LineBuffer {
    pub(super) fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), searched: 0, dropped: 0, limit }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line. To be called until it gives none, after each push.
    pub(super) fn next(&mut self) -> Option<Line> {
        let Some(at) = self.bytes[self.searched..].iter().position(|b| *b == b'\n') else {
            self.searched = self.bytes.len();
            if self.dropped + self.bytes.len() > self.limit {
                self.dropped += self.bytes.len();
                self.bytes.clear();
                self.searched = 0;
            }
            return None;
        };
        let end = self.searched + at;
        let rest = self.bytes.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.bytes, rest);
        self.searched = 0;
        line.pop();
        let length = std::mem::take(&mut self.dropped) + line.len();
        Some(if length > self.limit { Line::TooLong(length) } else { Line::Text(line) })
    }

    /// What stands there without a newline.
    pub(super) fn take_rest(&mut self) -> Vec<u8> {
        self.searched = 0;
        self.dropped = 0;
        std::mem::take(&mut self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_however_the_bytes_arrive() {
        let mut buffer = LineBuffer::new(100);
        buffer.push(b"on");
        assert_eq!(buffer.next(), None);
        buffer.push(b"e\n\ntwo\nthr");
        assert_eq!(buffer.next(), Some(Line::Text(b"one".to_vec())));
        assert_eq!(buffer.next(), Some(Line::Text(Vec::new())));
        assert_eq!(buffer.next(), Some(Line::Text(b"two".to_vec())));
        assert_eq!(buffer.next(), None);
        assert_eq!(buffer.take_rest(), b"thr");
    }

    #[test]
    fn a_line_over_the_bound_is_dropped_and_the_next_one_is_not() {
        let mut buffer = LineBuffer::new(4);
        for _ in 0..3 {
            buffer.push(b"xxxxx");
            assert_eq!(buffer.next(), None);
            assert!(buffer.bytes.is_empty(), "nothing is kept of it");
        }
        buffer.push(b"x\nok\n");
        assert_eq!(buffer.next(), Some(Line::TooLong(16)));
        assert_eq!(buffer.next(), Some(Line::Text(b"ok".to_vec())));
    }
}
