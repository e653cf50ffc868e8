//! What a command prints: tables with units for people, the API's JSON unchanged for programs. Answers go
//! to standard output, remarks and errors to standard error.

use std::io::{self, Write};
use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use crate::cli::Format;

/// Where a command writes, and how.
pub(crate) struct Output<'a> {
    pub(crate) format: Format,
    answers: &'a mut (dyn Write + Send),
    remarks: &'a mut (dyn Write + Send),
}

impl std::fmt::Debug for Output<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output").field("format", &self.format).finish_non_exhaustive()
    }
}

impl<'a> Output<'a> {
    pub(crate) fn new(
        format: Format,
        answers: &'a mut (dyn Write + Send),
        remarks: &'a mut (dyn Write + Send),
    ) -> Self {
        Self { format, answers, remarks }
    }

    /// Prints an answer: its JSON as it came, or the text made for people.
    pub(crate) fn answer(&mut self, json: &[u8], text: impl FnOnce() -> String) -> io::Result<()> {
        match self.format {
            Format::Json => self.line(&pretty(&String::from_utf8_lossy(json))),
            Format::Table => self.line(&text()),
        }
    }

    /// Prints an answer that is lines of text; each as it is, control characters included.
    pub(crate) fn answer_lines(&mut self, json: &[u8], lines: &[String]) -> io::Result<()> {
        if self.format == Format::Json {
            return self.answer(json, String::new);
        }
        for line in lines {
            writeln!(self.answers, "{}", line.trim_end_matches('\n'))?;
        }
        self.answers.flush()
    }

    pub(crate) fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.answers, "{}", text.trim_end_matches('\n'))?;
        self.answers.flush()
    }

    /// Says something that is not the answer. That nobody listens is no error.
    pub(crate) fn remark(&mut self, text: &str) {
        let _ = writeln!(self.remarks, "{text}");
    }
}

/// A table under a line of headings. Columns that hold numbers are aligned to the right.
pub(crate) fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = plain_table();
    table.set_header(headings);
    let rows: Vec<Vec<String>> = rows.into_iter().collect();
    for column in 0..headings.len() {
        let mut cells = rows.iter().filter_map(|row| row.get(column)).peekable();
        let numbers = cells.peek().is_some() && cells.all(|cell| cell == "-" || is_quantity(cell));
        if let (true, Some(column)) = (numbers, table.column_mut(column)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for row in rows {
        table.add_row(row.iter().map(|cell| visible(cell)));
    }
    finish(&mut table)
}

/// One thing in detail: names at the left, values at the right.
pub(crate) fn details(rows: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let mut table = plain_table();
    for (name, value) in rows {
        table.add_row([name.to_owned(), visible(&value)]);
    }
    finish(&mut table)
}

pub(crate) fn human_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    let (seconds, minutes, hours) = (ms / 1_000, ms / 60_000, ms / 3_600_000);
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..60_000 if ms.is_multiple_of(1_000) => format!("{seconds}s"),
        1_000..60_000 => format!("{seconds}.{}s", ms % 1_000 / 100),
        60_000..3_600_000 if seconds.is_multiple_of(60) => format!("{minutes}m"),
        60_000..3_600_000 => format!("{minutes}m{:02}s", seconds % 60),
        3_600_000..172_800_000 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{}d{:02}h", hours / 24, hours % 24),
    }
}

pub(crate) fn human_ms(ms: u64) -> String {
    human_duration(Duration::from_millis(ms))
}

/// Round trips, which are mostly below a millisecond; 0 is 'not measured'.
pub(crate) fn human_us(us: u64) -> String {
    match us {
        0 => "-".to_owned(),
        1..1_000 => format!("{us}µs"),
        1_000..1_000_000 => format!("{}.{}ms", us / 1_000, us % 1_000 / 100),
        _ => human_ms(us / 1_000),
    }
}

pub(crate) fn human_mb(mb: u64) -> String {
    if mb < 10_240 { format!("{mb} MB") } else { format!("{}.{} GB", mb / 1_024, mb % 1_024 * 10 / 1_024) }
}

pub(crate) fn human_bytes(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1_000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

/// Unix milliseconds as `2025-06-10T07:06:40.123Z`.
pub(crate) fn utc(unix_ms: u64) -> String {
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    // Days since 0000-03-01, so that leap days end a year (Hinnant, 'chrono-compatible low-level date algorithms').
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1_000)
}

/// Text from elsewhere on one line, and without power over the terminal.
pub(crate) fn visible(text: &str) -> String {
    if text.contains(char::is_control) {
        text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
    } else {
        text.to_owned()
    }
}

/// JSON laid out over lines, in its own order and with its own numbers, which parsing would change.
pub(crate) fn pretty(json: &str) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let mut depth = 0_usize;
    let mut chars = json.chars().peekable();
    let mut in_string = false;
    let new_line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.push_str(&"  ".repeat(depth));
    };
    while let Some(c) = chars.next() {
        if in_string {
            out.push(c);
            match c {
                '\\' => out.extend(chars.next()),
                '"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match c {
            c if c.is_ascii_whitespace() => {}
            '{' | '[' => {
                out.push(c);
                while chars.next_if(char::is_ascii_whitespace).is_some() {}
                match chars.next_if(|end| matches!(end, '}' | ']')) {
                    Some(end) => out.push(end),
                    None => {
                        depth += 1;
                        new_line(&mut out, depth);
                    }
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                new_line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            _ => {
                in_string = c == '"';
                out.push(c);
            }
        }
    }
    out
}

/// A number, with or without a unit.
fn is_quantity(cell: &str) -> bool {
    cell.starts_with(|c: char| c.is_ascii_digit())
        && cell.chars().all(|c| c.is_ascii_digit() || ". /msµhdBkMG".contains(c))
}

fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// Two spaces between columns and none at either end, so that a line can be cut into words.
fn finish(table: &mut Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn json_is_laid_out_as_serde_does_it_but_keeps_its_order_and_numbers() {
        let value = json!({"a": [], "b": {}, "c": [1, {"d": "x\"{,}\\", "e": null}], "f": "[ü]", "g": -1.5e300});
        let text = serde_json::to_string(&value).unwrap();
        assert_eq!(pretty(&text), serde_json::to_string_pretty(&value).unwrap());
        assert_eq!(pretty(&pretty(&text)), pretty(&text));
        insta::assert_snapshot!(pretty(r#"{"z":1.10,"a":[ ],"n":123456789012345678901234567890}"#), @r#"
        {
          "z": 1.10,
          "a": [],
          "n": 123456789012345678901234567890
        }
        "#);
        assert_eq!(pretty("3"), "3");
    }

    #[test]
    fn durations_have_the_unit_that_fits() {
        let shown: Vec<String> =
            [0, 999, 1_000, 1_250, 59_999, 60_000, 61_000, 3_599_999, 3_600_000, 7_500_000, 172_800_000]
                .map(human_ms)
                .to_vec();
        assert_eq!(shown, ["0ms", "999ms", "1s", "1.2s", "59.9s", "1m", "1m01s", "59m59s", "1h00m", "2h05m", "2d00h"]);
        assert_eq!([0, 230, 1_250, 2_000_000].map(human_us), ["-", "230µs", "1.2ms", "2s"]);
    }

    #[test]
    fn sizes_have_the_unit_that_fits() {
        assert_eq!([256, 10_239, 16_384, 20_000].map(human_mb), ["256 MB", "10239 MB", "16.0 GB", "19.5 GB"]);
        assert_eq!([0, 9_999, 123_456, 48_000_000].map(human_bytes), ["0 B", "9999 B", "123 kB", "48 MB"]);
    }

    #[test]
    fn times_are_utc_across_leap_days_and_year_ends() {
        assert_eq!(utc(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(utc(951_782_399_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(utc(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(utc(1_735_689_599_123), "2024-12-31T23:59:59.123Z");
        assert_eq!(utc(1_735_689_600_000), "2025-01-01T00:00:00.000Z");
    }

    #[test]
    fn columns_are_aligned_and_numbers_stand_at_the_right() {
        let rows = [["n1", "9", "1 MB"], ["node-2", "100", "-"]].map(|row| row.map(str::to_owned).to_vec());
        insta::assert_snapshot!(table(&["NODE", "RUNS", "MEMORY"], rows), @r"
        NODE    RUNS  MEMORY
        n1         9    1 MB
        node-2   100       -
        ");
        assert_eq!(table(&["NODE", "RUNS"], Vec::new()), "NODE  RUNS");
    }

    #[test]
    fn a_cell_can_not_break_its_line_or_command_the_terminal() {
        let text = details([("result", "a\n\u{1b}[31mred".to_owned())]);
        assert_eq!(text, "result  a\\n\\u{1b}[31mred");
    }

    #[test]
    fn remarks_stay_out_of_the_answer() {
        let (mut answers, mut remarks) = (Vec::new(), Vec::new());
        let mut output = Output::new(Format::Json, &mut answers, &mut remarks);
        output.remark("nothing there");
        output.answer(b"[]", || unreachable!()).unwrap();
        assert_eq!((answers.as_slice(), remarks.as_slice()), (b"[]\n".as_slice(), b"nothing there\n".as_slice()));
    }
}
