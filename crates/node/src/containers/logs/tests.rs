#![allow(clippy::unwrap_used)]

use std::sync::Mutex;

use super::*;

const ID: &str = "0123456789abcdef0123456789abcdef";

#[derive(Debug, Default)]
struct Kept(Mutex<Vec<String>>);

impl LogSink for Kept {
    fn line(&self, _: Stream, activation: Option<&str>, text: &str) {
        self.0.lock().unwrap().push(format!("{}|{text}", activation.unwrap_or("-")));
    }

    fn end(&self, _: Stream, activation: &str) {
        self.0.lock().unwrap().push(format!("{activation} ends"));
    }
}

fn parse(parts: &[&[u8]]) -> Vec<String> {
    let kept = Kept::default();
    let mut parser = LineParser::new(Stream::Stdout);
    for part in parts {
        parser.feed(part, &kept);
    }
    parser.finish(&kept);
    kept.0.into_inner().unwrap()
}

#[test]
fn a_framed_line_carries_its_activation_and_an_end_mark_ends_it() {
    let input = format!("plain\n\x1e{ID}\x1fhello\n\x1e{ID}\x1f{END_MARK}\n");
    assert_eq!(parse(&[input.as_bytes()]), ["-|plain".to_owned(), format!("{ID}|hello"), format!("{ID} ends")]);
}

#[test]
fn it_does_not_matter_where_the_bytes_are_parted() {
    let input = format!("a\n\x1e{ID}\x1fhello\n\n\x1e{ID}\x1f{END_MARK}\nlast");
    let whole = parse(&[input.as_bytes()]);
    assert_eq!(whole.len(), 5);
    for at in 0..input.len() {
        let (left, right) = input.as_bytes().split_at(at);
        assert_eq!(parse(&[left, right]), whole, "parted at {at}");
    }
    let bytes: Vec<&[u8]> = input.as_bytes().chunks(1).collect();
    assert_eq!(parse(&bytes), whole);
}

#[test]
fn a_frame_that_is_not_whole_is_text() {
    for input in [
        "\x1eabc\x1fx".to_owned(),
        format!("\x1e{}\x1fx", ID.to_uppercase()),
        format!("\x1e{ID}x"),
        "\x1e".to_owned(),
        format!("\x1e{ID}"),
    ] {
        assert_eq!(parse(&[input.as_bytes()]), [format!("-|{input}")]);
    }
}

#[test]
fn an_end_mark_behind_an_open_line_is_found() {
    let input = format!("no newline\x1e{ID}\x1f{END_MARK}\n");
    assert_eq!(parse(&[input.as_bytes()]), ["-|no newline".to_owned(), format!("{ID} ends")]);
}

#[test]
fn a_long_line_is_cut_and_the_next_one_is_whole() {
    let long = format!("\x1e{ID}\x1f{}\nnext\n", "x".repeat(3 * MAX_LINE_BYTES));
    for chunk in [1 << 20, 4096, 1000] {
        let parts: Vec<&[u8]> = long.as_bytes().chunks(chunk).collect();
        let lines = parse(&parts);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].len(), ID.len() + 1 + MAX_LINE_BYTES);
        assert_eq!(lines[1], "-|next");
    }
}

#[test]
fn an_unframed_long_line_is_cut_at_the_same_length() {
    let lines = parse(&["y".repeat(MAX_LINE_BYTES + 10).as_bytes()]);
    assert_eq!(lines, [format!("-|{}", "y".repeat(MAX_LINE_BYTES))]);
}

#[test]
fn an_end_mark_behind_an_endless_line_is_found() {
    let input = format!("{}\x1e{ID}\x1f{END_MARK}\n", "z".repeat(2 * MAX_LINE_BYTES));
    for chunk in [1 << 20, 777] {
        let parts: Vec<&[u8]> = input.as_bytes().chunks(chunk).collect();
        assert_eq!(parse(&parts).last().unwrap(), &format!("{ID} ends"));
    }
}

#[test]
fn invalid_utf8_is_replaced() {
    assert_eq!(parse(&[b"a\xffb\n"]), ["-|a\u{fffd}b"]);
}

#[tokio::test]
async fn a_reader_gives_lines_until_its_source_ends() {
    let kept = Kept::default();
    read_lines(&b"one\ntwo"[..], Stream::Stderr, &kept).await;
    assert_eq!(kept.0.into_inner().unwrap(), ["-|one", "-|two"]);
}
