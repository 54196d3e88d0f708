//! Test runs: a driver restores the packet and calls the program.

use std::{net::IpAddr, ops::Range, time::Duration};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, ProgramArray},
    programs::{
        Program, ProgramFd, ProgramInfo, SchedClassifier, TestRun, TestRunOptions, TestRunResult, Xdp,
    },
};
use etherparse::PacketBuilder;
use kubenet_benches::{Failure, machine, stats::Samples};
use kubenet_testkit::lab::{Netns, Node};
use nix::{ifaddrs::getifaddrs, net::if_::if_nametoindex};

use crate::routes;

pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../bpf/bench.bpf.o");

/// What TC programs that send a packet on answer, and XDP programs.
pub(crate) const REDIRECT: u32 = 7;
pub(crate) const XDP_TX: u32 = 3;

pub(crate) const SYN: u32 = 2;
pub(crate) const ACK: u32 = 16;

/// Which packets a driver makes; `struct plan` of the object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) flows: u32,
    pub(crate) services: u32,
    pub(crate) random: bool,
    pub(crate) next: u32,
    pub(crate) reply: bool,
    pub(crate) flags: u32,
    pub(crate) clients: u32,
    pub(crate) service: u32,
    pub(crate) port: u16,
}

impl Default for Plan {
    /// One flow of a pod, established.
    fn default() -> Self {
        Self {
            flows: 1,
            services: 1,
            random: false,
            next: 0,
            reply: false,
            flags: ACK,
            clients: routes::PODS,
            service: routes::service_address(0),
            port: 80,
        }
    }
}

/// MAC address that frames come from.
const SENDER: [u8; 6] = [2, 0, 0, 0, 9, 9];

/// `struct plan`.
type Words = [u32; 13];

impl Plan {
    /// For frames to this MAC address.
    fn words(&self, mac: [u8; 6]) -> Words {
        let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (mac, SENDER);
        [
            self.flows,
            self.services,
            self.random.into(),
            self.next,
            self.reply.into(),
            self.flags,
            self.clients,
            self.service,
            routes::ENDPOINTS,
            self.port.into(),
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
        ]
    }
}

/// Where a program hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Tc,
    Xdp,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// What a driver calls.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    /// Nothing: its own cost.
    Nobody,
    Empty,
    Floor,
    /// The floor with a look-up of the route; IPv4 alone. In XDP, the device must have a program.
    Routed,
    Program(&'a ProgramFd),
}

/// The benchmark's own object, loaded, and a device to send through.
pub(crate) struct Runs {
    ebpf: Ebpf,
    netns: Netns,
    device: u32,
    mac: [u8; 6],
}

impl Runs {
    /// The floor has room for so many Services.
    pub(crate) fn new(netns: Netns, device: &str, services: u32) -> Result<Self, Failure> {
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("floor_services4", services).map_max_entries("floor_services6", 16);
        let mut ebpf = loader.load(OBJECT)?;
        for name in ["tc_driver", "tc_empty", "tc_floor", "tc_routed"] {
            tc(&mut ebpf, name)?.load()?;
        }
        for name in ["xdp_driver", "xdp_empty", "xdp_floor", "xdp_routed"] {
            xdp(&mut ebpf, name)?.load()?;
        }
        let (device, mac) = netns.run(|| -> Result<_, Failure> {
            let index = if_nametoindex(device)?;
            let mac = getifaddrs()?
                .filter(|interface| interface.interface_name == device)
                .find_map(|interface| interface.address?.as_link_addr()?.addr());
            Ok((index, mac.ok_or("the device has no MAC address")?))
        })??;
        Ok(Self { ebpf, netns, device, mac })
    }

    /// Serves Services at the floor, each with its endpoint; those that are there already stay.
    pub(crate) fn fill_floor(&mut self, services: Range<u32>) -> Result<(), Failure> {
        let map = self.ebpf.map_mut("floor_services4").ok_or("no floor_services4")?;
        let mut map = HashMap::<_, [u8; 8], [u8; 8]>::try_from(map)?;
        let entry = |address: u32, port: u16, proto: u16| -> [u8; 8] {
            let [a, b, c, d] = address.to_be_bytes();
            let ([p, q], [r, s]) = (port.to_be_bytes(), proto.to_ne_bytes());
            [a, b, c, d, p, q, r, s]
        };
        for i in services {
            let backend = routes::ENDPOINTS + 3 * i + 1;
            map.insert(entry(routes::service_address(i), 80, 6), entry(backend, 80, 0), 0)?;
        }
        // So that runs towards node ports and replies find something, too.
        map.insert(
            entry(node_address(), routes::NODE_PORT.get(), 6),
            entry(routes::ENDPOINTS + 1, 80, 0),
            0,
        )?;
        let map = self.ebpf.map_mut("floor_services6").ok_or("no floor_services6")?;
        let mut map = HashMap::<_, [u8; 20], [u8; 20]>::try_from(map)?;
        let entry = |address: IpAddr, proto: u16| {
            let mut bytes = [0; 20];
            if let IpAddr::V6(six) = address {
                bytes[..16].copy_from_slice(&six.octets());
            }
            bytes[16..18].copy_from_slice(&80u16.to_be_bytes());
            bytes[18..].copy_from_slice(&proto.to_ne_bytes());
            bytes
        };
        let (at, backend) = (routes::six(routes::service_address(0)), routes::six(routes::ENDPOINTS + 1));
        map.insert(entry(at, 6), entry(backend, 0), 0)?;
        Ok(())
    }

    /// Runs so many packets. Seconds of CPU time for each, and what came of the last one.
    pub(crate) fn run(
        &mut self,
        hook: Hook,
        family: Family,
        target: Target<'_>,
        plan: &Plan,
        rounds: u32,
    ) -> Result<(f64, u32), Failure> {
        let (cpu, verdict) = self.test(hook, family, target, plan, rounds, &mut Vec::new())?;
        Ok((cpu.as_secs_f64() / f64::from(rounds), verdict))
    }

    /// The same, but the CPU time is that of all. `out` gets the frame as the last packet left it: with nobody, that is
    /// the one that a program is given.
    pub(crate) fn test(
        &mut self,
        hook: Hook,
        family: Family,
        target: Target<'_>,
        plan: &Plan,
        rounds: u32,
        out: &mut Vec<u8>,
    ) -> Result<(Duration, u32), Failure> {
        self.set_plan(plan)?;
        self.aim(hook, target)?;
        let frame = self.frame(family)?;
        let (ebpf, device) = (&mut self.ebpf, self.device);
        self.netns.run(move || -> Result<(Duration, u32), Failure> {
            machine::pin();
            out.resize(frame.len() + 256, 0);
            // Field `ifindex` of struct __sk_buff.
            let mut skb = [0; 192];
            skb[40..44].copy_from_slice(&device.to_ne_bytes());
            // Fields `data_end` and `ingress_ifindex` of struct xdp_md: a device with a program of its own, which
            // only these programs look at.
            let mut md = [0; 24];
            md[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
            md[12..16].copy_from_slice(&device.to_ne_bytes());
            let context = match (hook, target) {
                (Hook::Tc, _) => Some(&skb[..]),
                (Hook::Xdp, Target::Program(_) | Target::Routed) => Some(&md[..]),
                (Hook::Xdp, _) => None,
            };
            let options = TestRunOptions {
                data_in: Some(&frame),
                data_out: Some(&mut out[..]),
                ctx_in: context,
                repeat: rounds,
                ..TestRunOptions::default()
            };
            // The kernel's own figure is in whole nanoseconds.
            let begin = machine::thread_cpu()?;
            let result: TestRunResult = match hook {
                Hook::Tc => tc(ebpf, "tc_driver")?.test_run(options)?,
                Hook::Xdp => xdp(ebpf, "xdp_driver")?.test_run(options)?,
            };
            let cpu = machine::thread_cpu()?.saturating_sub(begin);
            out.truncate(result.data_size_out as usize);
            Ok((cpu, result.return_value))
        })?
    }

    /// The device that packets come in by: its number and MAC address.
    pub(crate) fn device(&self) -> (u32, [u8; 6]) {
        (self.device, self.mac)
    }

    /// What the kernel says of one of the benchmark's own programs.
    pub(crate) fn loaded(&self, name: &str) -> Result<ProgramInfo, Failure> {
        Ok(match self.ebpf.program(name).ok_or_else(|| format!("no program {name}"))? {
            Program::SchedClassifier(program) => program.info()?,
            Program::Xdp(program) => program.info()?,
            _ => return Err(format!("{name} is another program").into()),
        })
    }

    /// What the drivers do from now on.
    pub(crate) fn set_plan(&mut self, plan: &Plan) -> Result<(), Failure> {
        let map = self.ebpf.map_mut("plan").ok_or("no plan")?;
        Ok(Array::<_, Words>::try_from(map)?.set(0, plan.words(self.mac), 0)?)
    }

    fn aim(&mut self, hook: Hook, target: Target<'_>) -> Result<(), Failure> {
        let prefix = if hook == Hook::Tc { "tc" } else { "xdp" };
        let own;
        let program = match target {
            Target::Nobody => None,
            Target::Program(program) => Some(program),
            Target::Empty => {
                own = self.own(hook, &format!("{prefix}_empty"))?;
                Some(&own)
            }
            Target::Floor => {
                own = self.own(hook, &format!("{prefix}_floor"))?;
                Some(&own)
            }
            Target::Routed => {
                own = self.own(hook, &format!("{prefix}_routed"))?;
                Some(&own)
            }
        };
        let map = self.ebpf.map_mut(&format!("{prefix}_target")).ok_or("no map of targets")?;
        let mut targets = ProgramArray::<&mut MapData>::try_from(map)?;
        match program {
            Some(program) => targets.set(0, program, 0)?,
            None => drop(targets.clear_index(&0)),
        }
        Ok(())
    }

    /// One of the programs that are compared with.
    fn own(&mut self, hook: Hook, name: &str) -> Result<ProgramFd, Failure> {
        Ok(match hook {
            Hook::Tc => tc(&mut self.ebpf, name)?.fd()?.try_clone()?,
            Hook::Xdp => xdp(&mut self.ebpf, name)?.fd()?.try_clone()?,
        })
    }

    /// A frame whose headers the driver completes.
    pub(crate) fn frame(&self, family: Family) -> Result<Vec<u8>, Failure> {
        let ethernet = PacketBuilder::ethernet2(SENDER, self.mac);
        let ip = match family {
            Family::V4 => ethernet.ipv4([0; 4], [0; 4], 64),
            Family::V6 => ethernet.ipv6([0; 16], [0; 16], 64),
        };
        let payload = [0x5a; 10];
        let tcp = ip.tcp(0, 0, 1, 64_000).ack(1);
        let mut frame = Vec::with_capacity(tcp.size(payload.len()));
        tcp.write(&mut frame, &payload)?;
        Ok(frame)
    }
}

/// Where node ports are dialled.
pub(crate) fn node_address() -> u32 {
    Node::A.v4().into()
}

/// One thing that is measured beside others.
pub(crate) struct Case<'a> {
    pub(crate) hook: Hook,
    pub(crate) family: Family,
    pub(crate) target: Target<'a>,
    pub(crate) plan: Plan,
    /// What the program must answer.
    pub(crate) expect: Option<u32>,
}

impl Runs {
    /// Runs the cases in turn, so that noise hits all. `check` is called before a case's batch and after it, when
    /// the flag is set.
    pub(crate) fn compare(
        &mut self,
        cases: &mut [Case<'_>],
        batches: u32,
        rounds: u32,
        mut check: impl FnMut(usize, bool) -> Result<(), Failure>,
    ) -> Result<Vec<Cost>, Failure> {
        let mut costs = vec![Samples::default(); cases.len()];
        for _ in 0..batches {
            for (place, case) in cases.iter_mut().enumerate() {
                check(place, false)?;
                let (cost, answer) = self.run(case.hook, case.family, case.target, &case.plan, rounds)?;
                if case.expect.is_some_and(|expect| expect != answer) {
                    return Err(format!("case {place}: the program answers {answer}").into());
                }
                check(place, true)?;
                // In order, the next batch goes on with flows that nobody has seen.
                case.plan.next = case.plan.next.wrapping_add(rounds) % case.plan.flows;
                costs[place].push_seconds(cost);
            }
        }
        Ok(costs.into_iter().map(Cost).collect())
    }
}

/// What packets cost.
#[derive(Clone, Debug)]
pub(crate) struct Cost(Samples);

impl Cost {
    /// The least of all batches, in ns.
    pub(crate) fn least(&self) -> f64 {
        self.0.least().unwrap_or(f64::NAN) * 1e9
    }
}

fn tc<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, Failure> {
    Ok(ebpf.program_mut(name).ok_or_else(|| format!("no program {name}"))?.try_into()?)
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp, Failure> {
    Ok(ebpf.program_mut(name).ok_or_else(|| format!("no program {name}"))?.try_into()?)
}

#[cfg(test)]
mod tests;
