//! The time line that a person reads: one page without anything from elsewhere. A lane for each node with its faults,
//! above it how the calls went, below it every verdict and every fault in words.

use std::fmt::Write as _;

use super::checks::{Check, Verdict};
use super::evidence::{Evidence, Made, Outcome};
use super::scenario::Kind;

const WIDTH: u64 = 1_160;
const LEFT: u64 = 46;
const LANE: u64 = 30;
const BAR: u64 = 9;
const CHART: u64 = 90;
/// Columns of the chart of calls, at most.
const MOST_COLUMNS: u64 = 240;

const STYLE: &str = "
:root{--paper:#fff;--ink:#1b1f24;--dim:#68717d;--line:#dfe3e8;--soft:#f5f7f9;--well:#3f9b62;--refused:#d9a021;--bad:#c9372c}
@media (prefers-color-scheme:dark){:root{--paper:#14171b;--ink:#e6e9ed;--dim:#97a1ad;--line:#2e343c;--soft:#1c2127}}
body{font:15px/1.5 system-ui,sans-serif;background:var(--paper);color:var(--ink);max-width:1240px;margin:2em auto;padding:0 1.5em}
h1{font-size:1.5em;margin:0}h2{font-size:1.1em;margin:2.2em 0 .6em}
p{margin:.3em 0}.dim{color:var(--dim)}
.verdict{display:inline-block;font-weight:600;padding:.15em .7em;border-radius:1em;color:#fff;background:var(--well)}
.verdict.violated{background:var(--bad)}
.scroll{overflow-x:auto}svg{display:block}svg text{fill:var(--ink);font:12px system-ui,sans-serif}svg .tick{fill:var(--dim);font-size:11px}
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.3em .9em .3em 0;border-bottom:1px solid var(--line)}
th{color:var(--dim);font-weight:500}td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.held{color:var(--well)}.violated{color:var(--bad);font-weight:600}.not_judged{color:var(--dim)}
tr.violated td{font-weight:400;color:inherit}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--soft);padding:.8em;margin:.3em 0;font-size:12px;max-height:30em;overflow:auto}
.key span{display:inline-block;margin-right:1.1em}.key i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.35em}
";

/// The whole page.
pub(super) fn draw(evidence: &Evidence, checks: &[Check]) -> String {
    let (run, scenario) = (&evidence.run, &evidence.scenario);
    let violated = checks.iter().filter(|c| c.verdict == Verdict::Violated).count();
    let verdict = match violated {
        0 => "<span class=\"verdict\">every promise that was judged held</span>".to_owned(),
        n => format!("<span class=\"verdict violated\">{n} of {} promises violated</span>", checks.len()),
    };
    let healed = match run.healed_ms {
        Some(at) => format!("healed {} after the last fault", seconds(at.saturating_sub(run.faults_ended_ms))),
        None => "never healed".to_owned(),
    };
    let mut page = String::new();
    let _ = write!(
        page,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Embermesh chaos run, seed {seed}</title><style>{STYLE}</style>\
         <h1>Chaos run</h1><p>{verdict}</p>\
         <p>{nodes} nodes, {duration}, {faults} faults, {calls} calls of which {well} succeeded; {healed}.</p>\
         <p class=\"dim\">Seed {seed}. The same again: <code>{again}</code></p>",
        again = escaped(run.again.as_deref().unwrap_or("embermesh chaos run --scenario scenario.toml")),
        seed = scenario.seed,
        nodes = run.nodes.len(),
        duration = scenario.duration,
        faults = evidence.faults.len(),
        calls = evidence.requests.len(),
        well = evidence.successes(),
    );
    for (kind, why) in &run.left_out {
        let _ = write!(page, "<p class=\"dim\">Left out: {}, {}.</p>", kind.name(), escaped(why));
    }
    page.push_str("<h2>Time line</h2>");
    page.push_str(&key());
    page.push_str(&lanes(evidence));
    page.push_str("<h2>Promises</h2>");
    page.push_str(&verdicts(checks));
    page.push_str("<h2>Calls</h2>");
    page.push_str(&outcomes(evidence));
    page.push_str("<h2>Faults</h2>");
    page.push_str(&fault_table(&evidence.faults));
    page.push_str("</html>\n");
    page
}

fn colour(kind: Kind) -> &'static str {
    match kind {
        Kind::Kill => "#c9372c",
        Kind::Stop => "#8a4fc4",
        Kind::Partition => "#2f6fd0",
        Kind::Delay => "#3aa0c9",
        Kind::Loss => "#6f8cad",
        Kind::Engine => "#c9772b",
        Kind::Clock => "#2b9c86",
        Kind::Disk => "#8b6b43",
    }
}

fn key() -> String {
    use clap::ValueEnum as _;
    let mut text = String::from("<p class=\"key dim\">");
    for kind in Kind::value_variants() {
        let _ = write!(text, "<span><i style=\"background:{}\"></i>{}</span>", colour(*kind), kind.name());
    }
    for (colour, what) in [("well", "calls that went well"), ("refused", "refused"), ("bad", "failed or unknown")] {
        let _ = write!(text, "<span><i style=\"background:var(--{colour})\"></i>{what}</span>");
    }
    text.push_str("</p>");
    text
}

/// The picture: calls above, nodes below, on one axis.
fn lanes(evidence: &Evidence) -> String {
    let run = &evidence.run;
    let end =
        [run.calls_ended_ms, run.faults_ended_ms, run.at_rest_ms.unwrap_or(0), evidence.scenario.duration.as_ms()]
            .into_iter()
            .max()
            .unwrap_or(1)
            .max(1);
    let x = |ms: u64| LEFT + (WIDTH - LEFT) * ms.min(end) / end;
    let top = CHART + 24;
    let height = top + LANE * run.nodes.len() as u64 + 26;
    let mut svg = format!(
        "<div class=\"scroll\"><svg width=\"{WIDTH}\" height=\"{height}\" role=\"img\" aria-label=\"time line\">"
    );
    chart(&mut svg, evidence, end, x);
    if let Some(healed) = run.healed_ms {
        let (from, to) = (x(run.faults_ended_ms), x(healed));
        let _ = write!(
            svg,
            "<rect x=\"{from}\" y=\"{top}\" width=\"{}\" height=\"{}\" fill=\"var(--well)\" opacity=\".15\">\
             <title>healing: {}</title></rect>",
            (to - from).max(2),
            height - top - 26,
            seconds(healed.saturating_sub(run.faults_ended_ms))
        );
    }
    for (n, id) in run.nodes.iter().enumerate() {
        let y = top + LANE * n as u64;
        let _ = write!(
            svg,
            "<text x=\"0\" y=\"{}\">{}</text><rect x=\"{LEFT}\" y=\"{}\" width=\"{}\" height=\"1\" fill=\"var(--line)\"/>",
            y + 19,
            escaped(id),
            y + LANE - 1,
            WIDTH - LEFT
        );
        let mut rows: Vec<u64> = Vec::new();
        for made in evidence.faults.iter().filter(|made| made.nodes.contains(id)) {
            // Beside those that are on already.
            let row = rows.iter().position(|busy| *busy <= made.from_ms).unwrap_or(rows.len());
            if row == rows.len() {
                rows.push(made.to_ms);
            } else {
                rows[row] = made.to_ms;
            }
            let (from, to) = (x(made.from_ms), x(made.to_ms));
            let _ = write!(
                svg,
                "<rect x=\"{from}\" y=\"{}\" width=\"{}\" height=\"{BAR}\" rx=\"2\" fill=\"{}\"><title>{}: {} to {}</title></rect>",
                y + 4 + (row as u64).min(1) * (BAR + 2),
                (to - from).max(3),
                colour(made.kind),
                escaped(&made.says),
                seconds(made.from_ms),
                seconds(made.to_ms)
            );
        }
    }
    axis(&mut svg, end, height, x);
    svg.push_str("</svg></div>");
    svg
}

fn axis(svg: &mut String, end: u64, height: u64, x: impl Fn(u64) -> u64) {
    let steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 14_400];
    let step = steps.into_iter().map(|s| s * 1_000).find(|step| end / step <= 12).unwrap_or(end.max(1));
    for at in (0..=end).step_by(step as usize) {
        let _ = write!(
            svg,
            "<rect x=\"{0}\" y=\"0\" width=\"1\" height=\"{1}\" fill=\"var(--line)\"/><text class=\"tick\" x=\"{2}\" y=\"{3}\">{4}</text>",
            x(at),
            height - 20,
            x(at) + 3,
            height - 8,
            seconds(at)
        );
    }
}

/// Calls by when they began, stacked by how they ended.
fn chart(svg: &mut String, evidence: &Evidence, end: u64, x: impl Fn(u64) -> u64) {
    let step = (end / MOST_COLUMNS).max(500);
    let mut columns = vec![[0_u64; 3]; (end / step + 1) as usize];
    for request in &evidence.requests {
        let sort = match request.outcome {
            Outcome::Answered | Outcome::Accepted => 0,
            Outcome::Refused | Outcome::Unreached => 1,
            _ => 2,
        };
        if let Some(column) = columns.get_mut((request.from_ms / step) as usize) {
            column[sort] += 1;
        }
    }
    let most = columns.iter().map(|c| c.iter().sum::<u64>()).max().unwrap_or(0).max(1);
    let _ = write!(svg, "<text x=\"0\" y=\"14\">calls</text>");
    for (n, column) in columns.iter().enumerate() {
        let (from, to) = (x(n as u64 * step), x((n as u64 + 1) * step));
        let mut y = CHART;
        for (count, colour) in column.iter().zip(["well", "refused", "bad"]) {
            let tall = (count * CHART).div_ceil(most).min(y);
            if *count > 0 {
                y -= tall;
                let _ = write!(
                    svg,
                    "<rect x=\"{from}\" y=\"{y}\" width=\"{}\" height=\"{tall}\" fill=\"var(--{colour})\"><title>{count} calls from {}</title></rect>",
                    to.saturating_sub(from).max(2) - 1,
                    seconds(n as u64 * step)
                );
            }
        }
    }
}

fn verdicts(checks: &[Check]) -> String {
    let mut text = String::from("<table><tr><th>promise</th><th>verdict</th><th>what was seen</th></tr>");
    for check in checks {
        let (class, word) = match check.verdict {
            Verdict::Held => ("held", "held"),
            Verdict::Violated => ("violated", "violated"),
            Verdict::NotJudged => ("not_judged", "not judged"),
        };
        let seen = match check.seen.contains('\n') {
            true => format!("<pre>{}</pre>", escaped(&check.seen)),
            false => escaped(&check.seen),
        };
        let _ = write!(
            text,
            "<tr class=\"{class}\"><td>{}<br><span class=\"dim\">{}</span></td><td class=\"{class}\">{word}</td><td>{seen}</td></tr>",
            escaped(&check.name),
            escaped(&check.says)
        );
    }
    text.push_str("</table>");
    text
}

fn outcomes(evidence: &Evidence) -> String {
    let mut counts = std::collections::BTreeMap::<(Outcome, &str), u64>::new();
    for request in &evidence.requests {
        *counts.entry((request.outcome, &request.action)).or_default() += 1;
    }
    let mut text = String::from("<table><tr><th>outcome</th><th>action</th><th>calls</th></tr>");
    for ((outcome, action), count) in counts {
        let outcome = format!("{outcome:?}").to_lowercase();
        let _ = write!(text, "<tr><td>{outcome}</td><td>{}</td><td class=\"n\">{count}</td></tr>", escaped(action));
    }
    text.push_str("</table>");
    if evidence.run.held_back > 0 {
        let _ =
            write!(text, "<p class=\"dim\">{} calls were not made: too many were open.</p>", evidence.run.held_back);
    }
    text
}

fn fault_table(faults: &[Made]) -> String {
    let mut text = String::from("<table><tr><th>from</th><th>to</th><th>what</th></tr>");
    for made in faults {
        let failed = made.failed.as_ref().map(|why| format!(" <span class=\"violated\">{}</span>", escaped(why)));
        let _ = write!(
            text,
            "<tr><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}{}</td></tr>",
            seconds(made.from_ms),
            seconds(made.to_ms),
            escaped(&made.says),
            failed.unwrap_or_default()
        );
    }
    text.push_str("</table>");
    text
}

fn seconds(ms: u64) -> String {
    let (minutes, rest) = (ms / 60_000, ms % 60_000);
    let tenth = rest % 1_000 / 100;
    let point = if tenth > 0 { format!(".{tenth}") } else { String::new() };
    if minutes > 0 { format!("{minutes}m{:02}{point}s", rest / 1_000) } else { format!("{}{point}s", rest / 1_000) }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_is_shown_and_never_taken_for_markup() {
        assert_eq!(escaped("<b a=\"1\">&"), "&lt;b a=&quot;1&quot;&gt;&amp;");
    }

    #[test]
    fn moments_are_short() {
        assert_eq!([0, 1_500, 61_000, 600_200].map(seconds), ["0s", "1.5s", "1m01s", "10m00.2s"]);
    }
}
