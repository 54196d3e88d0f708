//! What happens in a cluster, one thing after another.

use kubenet_core::{
    cluster::Change,
    model::{Affinity, ServiceType, TrafficPolicy},
};

use super::{
    Load,
    plan::{HintsFor, Plan, PodState, most_pods, pick},
    valid,
};

/// Something that has begun and is to go on. What it speaks of may be gone by then.
#[derive(Clone, Copy, Debug)]
pub(super) enum Todo {
    /// A new pod becomes ready, and the one that it replaces begins to terminate.
    Ready { service: usize, pod: u32, replaces: Option<u32> },
    /// A pod has ended.
    Gone { service: usize, pod: u32 },
    /// A rolling update replaces so many more pods.
    Roll { service: usize, left: u32 },
    /// A deleted Service is created anew.
    Create { service: usize },
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Flap,
    ScaleUp,
    ScaleDown,
    Roll,
    Edit,
    Rehint,
    Delete,
}

const EVENTS: &[Event] =
    &[Event::Flap, Event::ScaleUp, Event::ScaleDown, Event::Roll, Event::Edit, Event::Rehint, Event::Delete];
const EVENT_WEIGHTS: &[u32] = &[30, 15, 15, 10, 23, 2, 5];
/// Things that go on at the same time.
const MOST_TODO: usize = 64;

pub(super) fn step(load: &mut Load) -> Vec<Change> {
    if load.plans.is_empty() {
        return Vec::new();
    }
    loop {
        let goes_on = load.todo.len() > MOST_TODO || load.random.u32(0..100) < 60;
        let todo = if goes_on { load.todo.pop_front() } else { None };
        let changes = match todo {
            Some(todo) => go_on(load, todo),
            None => begin(load),
        };
        // Nothing comes of what was to happen to a Service that is gone.
        if !changes.is_empty() {
            return changes;
        }
    }
}

/// Works on a Service and the rest of the cluster at once.
fn change(
    load: &mut Load,
    service: usize,
    what: impl FnOnce(&mut Load, &mut Plan) -> Vec<Change>,
) -> Vec<Change> {
    let Some(place) = load.plans.get_mut(service) else { return Vec::new() };
    let mut plan = std::mem::replace(place, Plan::absent(0));
    let changes = what(load, &mut plan);
    if let Some(place) = load.plans.get_mut(service) {
        *place = plan;
    }
    changes
}

fn go_on(load: &mut Load, todo: Todo) -> Vec<Change> {
    match todo {
        Todo::Ready { service, pod, replaces } => change(load, service, |load, plan| {
            let mut changes = set_state(load, plan, pod, PodState::Starting, PodState::Ready);
            if let Some(old) = replaces.filter(|_| !changes.is_empty()) {
                changes.extend(terminate(load, service, plan, old));
            }
            changes
        }),
        Todo::Gone { service, pod } => change(load, service, |load, plan| remove(load, plan, pod)),
        Todo::Roll { service, left } => change(load, service, |load, plan| roll(load, service, plan, left)),
        Todo::Create { service } => change(load, service, create),
    }
}

fn begin(load: &mut Load) -> Vec<Change> {
    let service = load.random.usize(0..load.plans.len());
    let event = pick(&mut load.random, EVENTS, EVENT_WEIGHTS);
    change(load, service, |load, plan| {
        if !plan.exists {
            return Vec::new();
        }
        match event {
            Event::Flap => flap(load, plan),
            Event::ScaleUp => start(load, service, plan, None),
            Event::ScaleDown => {
                let ready: Vec<_> = in_state(plan, PodState::Ready).collect();
                load.random.choice(ready).map_or_else(Vec::new, |pod| terminate(load, service, plan, pod))
            }
            Event::Roll => {
                let left = in_state(plan, PodState::Ready).count() as u32;
                roll(load, service, plan, left)
            }
            Event::Edit => edit(load, plan),
            Event::Rehint => {
                plan.hints = match plan.hints {
                    HintsFor::Nobody => HintsFor::Zones,
                    HintsFor::Zones => HintsFor::Nodes,
                    HintsFor::Nodes => HintsFor::Nobody,
                };
                // An empty slice has nobody to hint at.
                let slices = plan.slices().filter(|_| plan.pods().next().is_some());
                slices.flat_map(|index| load.slice(plan, index)).collect()
            }
            Event::Delete => delete(load, service, plan),
        }
    })
}

fn in_state(plan: &Plan, state: PodState) -> impl Iterator<Item = u32> + '_ {
    plan.pods().filter(move |pod| pod.state == state).map(|pod| pod.number)
}

fn set_state(load: &Load, plan: &mut Plan, number: u32, from: PodState, to: PodState) -> Vec<Change> {
    match plan.pod_mut(number) {
        Some((index, pod)) if pod.state == from => {
            pod.state = to;
            load.slice(plan, index).collect()
        }
        _ => Vec::new(),
    }
}

/// A pod stops or begins to be ready.
fn flap(load: &mut Load, plan: &mut Plan) -> Vec<Change> {
    let alive = plan.pods().filter(|pod| pod.state != PodState::Terminating);
    let Some(pod) = load.random.choice(alive.copied().collect::<Vec<_>>()) else { return Vec::new() };
    let to = if pod.state == PodState::Ready { PodState::Starting } else { PodState::Ready };
    set_state(load, plan, pod.number, pod.state, to)
}

/// A new pod, which is not ready yet.
fn start(load: &mut Load, service: usize, plan: &mut Plan, replaces: Option<u32>) -> Vec<Change> {
    if plan.pods().count() as u32 >= most_pods(load.endpoints) {
        return Vec::new();
    }
    let Some((index, pod)) = load.add_pod(plan, PodState::Starting) else { return Vec::new() };
    load.todo.push_back(Todo::Ready { service, pod: pod.number, replaces });
    load.slice(plan, index).collect()
}

fn terminate(load: &mut Load, service: usize, plan: &mut Plan, pod: u32) -> Vec<Change> {
    let changes = set_state(load, plan, pod, PodState::Ready, PodState::Terminating);
    if !changes.is_empty() {
        load.todo.push_back(Todo::Gone { service, pod });
    }
    changes
}

fn remove(load: &mut Load, plan: &mut Plan, pod: u32) -> Vec<Change> {
    let Some((index, empty)) = plan.remove_pod(pod) else { return Vec::new() };
    load.pods.give_back(pod);
    if empty {
        return remove_slice(plan, index).collect();
    }
    load.slice(plan, index).collect()
}

fn remove_slice(plan: &Plan, index: usize) -> impl Iterator<Item = Change> + '_ {
    let names = plan.families.iter().filter_map(move |family| plan.slice_object_name(index, *family));
    names.map(Change::RemoveEndpointSlice)
}

/// Replaces the oldest pod that is ready.
fn roll(load: &mut Load, service: usize, plan: &mut Plan, left: u32) -> Vec<Change> {
    let Some(left) = left.checked_sub(1) else { return Vec::new() };
    let Some(oldest) = in_state(plan, PodState::Ready).next() else { return Vec::new() };
    let changes = start(load, service, plan, Some(oldest));
    if !changes.is_empty() && left > 0 {
        load.todo.push_back(Todo::Roll { service, left });
    }
    changes
}

fn delete(load: &mut Load, service: usize, plan: &mut Plan) -> Vec<Change> {
    let Some(name) = plan.object_name() else { return Vec::new() };
    let mut changes = vec![Change::RemoveService(name)];
    changes.extend(plan.slices().flat_map(|index| remove_slice(plan, index)));
    for pod in plan.end() {
        load.pods.give_back(pod.number);
    }
    load.addresses.give_back(plan.address);
    plan.node_ports.drain(..).for_each(|port| load.node_ports.give_back(port));
    load.todo.push_back(Todo::Create { service });
    changes
}

/// The same name, another life: other addresses, other pods, perhaps another type.
fn create(load: &mut Load, plan: &mut Plan) -> Vec<Change> {
    if plan.exists {
        return Vec::new();
    }
    load.declare(plan);
    let mut changes: Vec<_> = plan.slices().flat_map(|index| load.slice(plan, index)).collect();
    let service = plan.service().and_then(valid);
    // Nobody promises which of them is told first.
    let place = if load.random.bool() { 0 } else { changes.len() };
    changes.splice(place..place, service);
    changes
}

/// Somebody edits the Service.
fn edit(load: &mut Load, plan: &mut Plan) -> Vec<Change> {
    let other = |policy| match policy {
        TrafficPolicy::Cluster => TrafficPolicy::Local,
        TrafficPolicy::Local => TrafficPolicy::Cluster,
    };
    let is_load_balancer = plan.service_type == ServiceType::LoadBalancer;
    match load.random.u32(0..100) {
        0..20 if plan.service_type != ServiceType::ClusterIp => plan.external = other(plan.external),
        20..40 if is_load_balancer => plan.has_load_balancer ^= true,
        40..60 if is_load_balancer => plan.has_source_ranges ^= true,
        60..80 => {
            plan.affinity = match plan.affinity {
                None => Affinity::new(load.random.u32(1..=600)),
                Some(_) => None,
            };
        }
        80..90 => plan.has_external_ip ^= true,
        90..100 if !is_load_balancer => retype(load, plan),
        _ => plan.internal = other(plan.internal),
    }
    plan.service().and_then(valid).into_iter().collect()
}

/// From `ClusterIP` to `NodePort` or back.
fn retype(load: &mut Load, plan: &mut Plan) {
    if plan.service_type == ServiceType::ClusterIp {
        plan.service_type = ServiceType::NodePort;
        plan.node_ports.extend(load.node_ports.take());
    } else {
        plan.service_type = ServiceType::ClusterIp;
        plan.node_ports.drain(..).for_each(|port| load.node_ports.give_back(port));
    }
}
