//! The per-node agent: keeps the kernel of this node equal to the Services of the cluster.
//!
//! It watches Services, EndpointSlices and its Node, serves the health-check node ports, `/healthz`, `/livez`
//! and `/metrics`, and leaves the kernel forwarding when it is stopped or killed. `examples/deploy` has a
//! DaemonSet for it.
#![forbid(unsafe_code)]

mod args;
mod datapath;
#[cfg(target_os = "linux")]
mod interfaces;

use std::{error::Error, io::IsTerminal, process::ExitCode};

use clap::Parser;
use kube::{
    Client,
    config::{KubeConfigOptions, Kubeconfig},
};
use kubenet_examples::agent;
use tokio::signal::unix::{SignalKind, signal};

use self::args::Args;

fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_max_level(args.log_level)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(&args))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("agent: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  because: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let config = args.config()?;
    let client = client(args).await?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let chosen = datapath::choose(args)?;
    #[cfg(target_os = "linux")]
    if let Some(pods) = chosen.pods {
        tokio::spawn(pods.follow());
    }
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    Ok(agent::run(config, client, chosen.datapath, shutdown).await?)
}

async fn client(args: &Args) -> Result<Client, Box<dyn Error>> {
    let mut config = match &args.kubeconfig {
        Some(file) => {
            let kubeconfig = Kubeconfig::read_from(file)?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?
        }
        None => kube::Config::incluster()?,
    };
    if let Some(url) = &args.apiserver {
        config.cluster_url = url.parse().map_err(|error| format!("--apiserver {url}: {error}"))?;
    }
    Ok(agent::client(config)?)
}
