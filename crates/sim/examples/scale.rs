//! Prints the tables of docs/scale.md: hundreds of nodes over a model of their gossip. A node's steps are production's.
//!
//! `cargo run -p embermesh-sim --example scale -- --help`
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;
use std::time::Instant;

use embermesh_sim::scale::gossip::spread_alone;
use embermesh_sim::scale::{Report, Setting, Spread, run};

const HELP: &str = "\
Simulates many nodes and prints what was counted, as tables in Markdown.

Usage: scale [OPTIONS]

  --nodes LIST       sizes to simulate, each with as many cells as `:` names [default: 100,300,600,1000,1000:10]
  --containers N     containers over all nodes [default: 10000]
  --adverts N        adverts of one node at a time, at most 64 [default: 32]
  --seconds N        how long to count, after 20 s that are not counted [default: 30]
  --seed N           decides everything [default: 1]
  --gossip LIST      gossip alone: ten adverts a node, one of them changed each second, at these sizes
  --cells N          gossip alone, of a mesh of N cells of 100 nodes with three gateways each
  --help             this text
";

#[derive(Default)]
struct Options {
    nodes: Vec<(usize, usize)>,
    gossip: Vec<usize>,
    cells: Option<usize>,
    containers: usize,
    adverts: usize,
    seconds: u64,
    seed: u64,
}

fn main() -> ExitCode {
    match options(std::env::args().skip(1)) {
        Ok(Some(options)) => {
            print(&options);
            ExitCode::SUCCESS
        }
        Ok(None) => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("error: {problem}; `--help` shows what there is");
            ExitCode::FAILURE
        }
    }
}

fn print(options: &Options) {
    if !options.gossip.is_empty() {
        println!("{}", Spread::head());
        for members in &options.gossip {
            println!("{}", spread_alone(*members, options.seconds, options.seed).row());
        }
    }
    if let Some(cells) = options.cells {
        println!("{}", embermesh_sim::scale::cells::head());
        println!("{}", embermesh_sim::scale::cells::gateways(cells, options.seconds, options.seed).row());
    }
    if !options.nodes.is_empty() {
        println!("{}", Report::head());
    }
    for (nodes, cells) in &options.nodes {
        let began = Instant::now();
        let (cells, adverts, seconds) = (*cells, options.adverts, options.seconds);
        let base = Setting::new(*nodes, options.containers, options.seed);
        let report = run(&Setting { cells, adverts, seconds, ..base });
        println!("{}", report.row());
        eprintln!("{:.0} s; {report}", began.elapsed().as_secs_f64());
    }
}

/// `None`: help is wanted.
fn options(arguments: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
    let mut options = Options { containers: 10_000, adverts: 32, seconds: 30, seed: 1, ..Options::default() };
    let mut nodes = None;
    let mut arguments = arguments;
    while let Some(name) = arguments.next() {
        if name == "--help" || name == "-h" {
            return Ok(None);
        }
        let value = arguments.next().ok_or_else(|| format!("`{name}` needs a value"))?;
        match name.as_str() {
            "--nodes" => nodes = Some(list(&value, size)?),
            "--gossip" => options.gossip = list(&value, |text| within(text, 2, 1_200))?,
            "--cells" => options.cells = Some(within(&value, 2, 100)?),
            "--containers" => options.containers = within(&value, 40, 1_000_000)?,
            "--adverts" => options.adverts = within(&value, 1, 64)?,
            "--seconds" => options.seconds = within(&value, 1, 3_600)? as u64,
            "--seed" => options.seed = value.parse().map_err(|_| format!("`{value}` is no seed: give a number"))?,
            _ => return Err(format!("`{name}` is no option")),
        }
    }
    let alone = !options.gossip.is_empty() || options.cells.is_some();
    let usual = if alone { Vec::new() } else { list("100,300,600,1000,1000:10", size)? };
    options.nodes = nodes.unwrap_or(usual);
    Ok(Some(options))
}

fn list<T>(text: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    text.split(',').map(read).collect()
}

/// `1000` or `1000:10`: nodes, and cells.
fn size(text: &str) -> Result<(usize, usize), String> {
    let (nodes, cells) = text.split_once(':').unwrap_or((text, "1"));
    let (nodes, cells) = (within(nodes, 2, 2_000)?, within(cells, 1, 1_000)?);
    if nodes % cells != 0 || nodes / cells < 2 {
        return Err(format!("{nodes} nodes can't be {cells} cells of the same size, of two nodes or more"));
    }
    Ok((nodes, cells))
}

fn within(text: &str, least: usize, most: usize) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| (least..=most).contains(n));
    number.ok_or_else(|| format!("`{text}` is not a number from {least} to {most}"))
}
