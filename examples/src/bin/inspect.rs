//! Shows what an eBPF datapath holds and has counted, from its pins: whether its own process runs or not.
//! Needs `CAP_BPF`, and changes nothing of what is served.
//!
//! ```sh
//! cargo run -p kubenet-examples --bin inspect -- --pin-dir /sys/fs/bpf/kubenet
//! cargo run -p kubenet-examples --bin inspect -- --json | jq '.counters'
//! # Flows as they begin, and packets as they are dropped, until it is ended.
//! cargo run -p kubenet-examples --bin inspect -- --follow
//! ```
//!
//! One `--follow` at a time may read a datapath's events; a second one is refused. The datapath's own process has a
//! ring of its own, so that neither takes the other's. When it ends, however that is, the programs report no more
//! within three seconds.
#![forbid(unsafe_code)]

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    linux::main()
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("inspect: eBPF needs Linux");
    ExitCode::FAILURE
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        error::Error,
        io::{self, BufWriter, Write},
        path::PathBuf,
        process::ExitCode,
        time::Duration,
    };

    use clap::Parser;
    use kubenet_ebpf::{DEFAULT_PIN_DIR, Inspector};
    use kubenet_examples::inspect::{Report, line};

    /// Show frontends, backends, connections, clients with affinity and counters of an eBPF datapath.
    #[derive(Debug, Parser)]
    #[command(name = "inspect", version)]
    struct Args {
        /// Where the datapath pins.
        #[arg(long, value_name = "PATH", default_value = DEFAULT_PIN_DIR)]
        pin_dir: PathBuf,
        /// As JSON, for programs; with --follow, an object a line.
        #[arg(long)]
        json: bool,
        /// Print flows as they begin and packets as they are dropped, in place of what there is.
        #[arg(long)]
        follow: bool,
        /// End after so many of those.
        #[arg(long, value_name = "N", requires = "follow")]
        events: Option<u64>,
    }

    pub(super) fn main() -> ExitCode {
        match run(&Args::parse()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) if is_closed_pipe(&*error) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("inspect: {error}");
                ExitCode::FAILURE
            }
        }
    }

    /// Whoever reads has enough: `inspect | head`.
    fn is_closed_pipe(error: &(dyn Error + 'static)) -> bool {
        error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    }

    fn run(args: &Args) -> Result<(), Box<dyn Error>> {
        let inspector = Inspector::open(&args.pin_dir)?;
        let mut out = BufWriter::new(io::stdout().lock());
        if args.follow {
            return follow(args, &inspector, &mut out);
        }
        let report = Report::read(&inspector)?;
        if args.json {
            serde_json::to_writer_pretty(&mut out, &report).map_err(io::Error::from)?;
            writeln!(out)?;
        } else {
            write!(out, "{report}")?;
        }
        out.flush()?;
        Ok(())
    }

    fn follow(args: &Args, inspector: &Inspector, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
        let mut followed = inspector.follow()?;
        eprintln!("inspect: following");
        let mut left = args.events;
        while left != Some(0) {
            let Some(event) = followed.next(Duration::from_millis(500))? else { continue };
            let Some(line) = line(&event, args.json) else { continue };
            writeln!(out, "{line}")?;
            out.flush()?;
            left = left.map(|left| left - 1);
        }
        Ok(())
    }
}
