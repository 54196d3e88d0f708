//! Who is asked: the reference in memory, or a datapath of the kernel.

use std::error::Error;

use kubenet_examples::trace::Dialled;

use crate::{
    answer::Answer,
    args::{Args, Kind},
    model::Model,
};

pub(crate) enum Oracle {
    Memory,
    #[cfg(target_os = "linux")]
    Kernel(Box<kubenet_examples::trace::Observed>),
}

impl Oracle {
    /// Asks about all flows.
    #[cfg(target_os = "linux")]
    pub(crate) fn ask(args: &Args, model: &Model, flows: &[Dialled]) -> Result<Self, Box<dyn Error>> {
        use kubenet_examples::trace::{self, observe};
        use kubenet_iptables::Variant;

        let kind = match args.datapath {
            Kind::Memory => return Ok(Oracle::Memory),
            Kind::Iptables => trace::Kind::Iptables(Variant::Auto),
            Kind::IptablesNft => trace::Kind::Iptables(Variant::Nft),
            Kind::IptablesLegacy => trace::Kind::Iptables(Variant::Legacy),
            Kind::Ebpf => trace::Kind::Ebpf,
        };
        let table = model.cluster.table();
        let observed = observe(kind, table, &model.pod_cidrs, flows, args.samples)?;
        for (frontend, why) in &observed.refused {
            let name = table.get(frontend).map(|route| route.service_port.to_string()).unwrap_or_default();
            eprintln!("not served: {frontend} ({name}): {why}");
        }
        Ok(Oracle::Kernel(Box::new(observed)))
    }

    /// Asks about all flows.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn ask(args: &Args, _: &Model, _: &[Dialled]) -> Result<Self, Box<dyn Error>> {
        match args.datapath {
            Kind::Memory => Ok(Oracle::Memory),
            _ => Err("only Linux has this datapath".into()),
        }
    }

    /// What it said of the flow of this number.
    pub(crate) fn answer(&self, model: &Model, _index: usize, dialled: &Dialled) -> Answer {
        match self {
            Oracle::Memory => Answer::of(model, dialled),
            #[cfg(target_os = "linux")]
            Oracle::Kernel(observed) => Answer::seen(model, dialled, observed, _index),
        }
    }
}
