//! "What would happen to this packet?" Loads manifests and flows, and says for each flow the verdict of this
//! node, the backends that can be chosen, whether the source address is replaced, and the rules that decided.
//! It asks the reference in memory or, with `--datapath`, a datapath of the kernel: then all but the rules is
//! what was seen of real packets.
//!
//! ```sh
//! cargo run -p kubenet-examples --bin trace -- --manifests examples/manifests --node-name node-a \
//!     --node-ip 10.89.0.1 --cluster-cidr 10.244.0.0/16 --from 10.244.1.9 --to 10.96.0.10 --port 80
//! ```
#![forbid(unsafe_code)]

mod answer;
mod args;
mod model;
mod oracle;
#[cfg(target_os = "linux")]
mod seen;
mod why;

use std::{
    error::Error,
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Write},
    path::Path,
    process::ExitCode,
};

use clap::Parser;
use kubenet_examples::trace::Dialled;
use serde_json::{Map, Value, json};

use self::{args::Args, model::Model, oracle::Oracle};

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // Who reads the answers has heard enough.
        Err(error)
            if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) =>
        {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("trace: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every flow could be read.
fn run(args: &Args) -> Result<bool, Box<dyn Error>> {
    let model = Model::load(args)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let Some(flows) = &args.flows else {
        let (from, to) = (args.from.as_deref().unwrap_or_default(), args.to.as_deref().unwrap_or_default());
        let dialled = Dialled::new(from, to, args.port.unwrap_or_default(), &args.protocol)
            .map_err(|wrong| format!("--{wrong}"))?;
        let oracle = Oracle::ask(args, &model, &[dialled])?;
        write!(out, "{}", oracle.answer(&model, 0, &dialled).text(&dialled))?;
        out.flush()?;
        return Ok(true);
    };
    let mut all_read = true;
    let described = describe(flows)?;
    let dialled: Vec<Dialled> =
        described.iter().filter_map(|line| Some(line.flow.as_ref().ok()?.1)).collect();
    let oracle = Oracle::ask(args, &model, &dialled)?;
    let mut index = 0;
    for Described { number, flow } in &described {
        match flow {
            Ok((object, dialled)) => {
                writeln!(out, "{}", oracle.answer(&model, index, dialled).json(object)?)?;
                index += 1;
            }
            // In the place of its answer, so that answers can be told apart by their order.
            Err(wrong) => {
                all_read = false;
                eprintln!("{}: line {number}: {wrong}", flows.display());
                writeln!(out, "{}", json!({ "line": number, "error": wrong }))?;
            }
        }
    }
    out.flush()?;
    Ok(all_read)
}

/// A line that is not empty: the flow as it was given and as it was understood, or what is wrong with it.
struct Described {
    number: usize,
    flow: Result<(Map<String, Value>, Dialled), String>,
}

fn describe(flows: &Path) -> Result<Vec<Described>, Box<dyn Error>> {
    let mut described = Vec::new();
    for (number, line) in (1..).zip(lines(flows)?) {
        let line =
            line.map_err(|error| format!("{}: line {number}: cannot be read: {error}", flows.display()))?;
        if !line.trim().is_empty() {
            described.push(Described { number, flow: read(&line) });
        }
    }
    Ok(described)
}

fn read(line: &str) -> Result<(Map<String, Value>, Dialled), String> {
    let flow: Map<String, Value> =
        serde_json::from_str(line).map_err(|error| format!("must be an object of JSON: {error}"))?;
    let dialled = Dialled::read(&flow)?;
    Ok((flow, dialled))
}

fn lines(path: &Path) -> Result<Box<dyn Iterator<Item = io::Result<String>>>, String> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdin().lock().lines()));
    }
    let file = File::open(path).map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
    Ok(Box::new(BufReader::new(file).lines()))
}
