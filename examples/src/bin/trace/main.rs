//! "What would happen to this packet?" Loads manifests and flows, and says for each flow the verdict of this
//! node, the backends that can be chosen, whether the source address is replaced, and the rules that decided.
//!
//! ```sh
//! cargo run -p kubenet-examples --bin trace -- --manifests examples/manifests --node-name node-a \
//!     --node-ip 10.89.0.1 --cluster-cidr 10.244.0.0/16 --from 10.244.1.9 --to 10.96.0.10 --port 80
//! ```
#![forbid(unsafe_code)]

mod answer;
mod args;
mod flow;
mod model;
mod why;

use std::{
    error::Error,
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Write},
    path::Path,
    process::ExitCode,
};

use clap::Parser;
use serde_json::{Map, Value, json};

use self::{
    answer::Answer,
    args::{Args, Kind},
    flow::Dialled,
    model::Model,
};

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
    let Kind::Memory = args.datapath;
    let model = Model::load(args)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let Some(flows) = &args.flows else {
        let (from, to) = (args.from.as_deref().unwrap_or_default(), args.to.as_deref().unwrap_or_default());
        let dialled = Dialled::new(from, to, args.port.unwrap_or_default(), &args.protocol)
            .map_err(|wrong| format!("--{wrong}"))?;
        write!(out, "{}", Answer::of(&model, &dialled).text(&dialled))?;
        out.flush()?;
        return Ok(true);
    };
    let mut all_read = true;
    for (number, line) in (1..).zip(lines(flows)?) {
        let line =
            line.map_err(|error| format!("{}: line {number}: cannot be read: {error}", flows.display()))?;
        if line.trim().is_empty() {
            continue;
        }
        match answer(&model, &line) {
            Ok(answer) => writeln!(out, "{answer}")?,
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

fn answer(model: &Model, line: &str) -> Result<String, String> {
    let flow: Map<String, Value> =
        serde_json::from_str(line).map_err(|error| format!("must be an object of JSON: {error}"))?;
    let answer = Answer::of(model, &Dialled::read(&flow)?);
    answer.json(&flow).map_err(|error| error.to_string())
}

fn lines(path: &Path) -> Result<Box<dyn Iterator<Item = io::Result<String>>>, String> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdin().lock().lines()));
    }
    let file = File::open(path).map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
    Ok(Box::new(BufReader::new(file).lines()))
}
