//! From routes to chains and rules. Pure: nothing here touches the kernel.
//!
//! A [`Planner`] holds the plan of a table; [`Planner::step`] says which chains a delta changes, at a cost
//! that follows the delta, and [`Planner::commit`] takes the step once the kernel has it.

mod affinity;
mod answers;
mod dispatch;
mod fixed;
mod group;
mod marks;
mod odds;
mod serve;
pub(crate) mod shared_port;
#[cfg(test)]
mod tests;
mod tree;
mod walk;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kubenet_core::{
    model::IpFamily,
    route::{Frontend, Masquerade, NodeRouting, Route, RouteDelta, RouteTable},
};

use self::dispatch::{Edit, Frontends};
pub(crate) use self::{dispatch::Dispatch, fixed::Jump};
use crate::{
    names::{NameHash, Names},
    rule::{ChainChanges, ChainKey, ChainName, Chains, Rule, Table},
};

/// What all plans of a datapath share.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) names: Names,
    /// Whether source ports of masqueraded flows can be chosen fully at random.
    pub(crate) random_fully: bool,
    /// Whether a rule can tell a flow whose backend is its own source.
    pub(crate) hairpin: bool,
    /// Whether rules know SCTP.
    pub(crate) sctp: bool,
    /// Whether packets are forwarded that the kernel can make no sense of ([N2]).
    pub(crate) accept_invalid: bool,
    pub(crate) families: Vec<IpFamily>,
}

/// The plan of all routes of one Service port in one family.
#[derive(Clone, Debug, Default)]
pub(crate) struct GroupPlan {
    /// In the table nat.
    pub(crate) chains: Vec<(ChainName, Arc<[Rule]>)>,
    pub(crate) dispatch: Vec<(Frontend, Dispatch)>,
    pub(crate) masquerades: BTreeSet<Masquerade>,
}

type GroupKey = (IpFamily, NameHash);

fn group_key(route: &Route) -> GroupKey {
    (route.frontend.family(), NameHash::of(&[&group::name_and_protocol(route)]))
}

/// What is kept of a group: enough to plan it again and to know what it had.
#[derive(Clone, Debug, Default)]
struct Group {
    frontends: BTreeSet<Frontend>,
    chains: Vec<ChainName>,
    masquerades: BTreeSet<Masquerade>,
}

/// The plan of one family.
#[derive(Clone, Debug, Default)]
struct FamilyPlan {
    chains: Chains,
    frontends: Frontends,
    /// How many groups use each masquerade chain.
    masquerades: BTreeMap<Masquerade, usize>,
}

/// The plan of a table.
#[derive(Clone, Debug)]
pub(crate) struct Planner {
    context: Arc<Context>,
    table: RouteTable,
    groups: BTreeMap<GroupKey, Group>,
    families: BTreeMap<IpFamily, FamilyPlan>,
}

/// The way from one plan to the next.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) changes: BTreeMap<IpFamily, ChainChanges>,
    next: Next,
}

#[derive(Debug)]
enum Next {
    Parts { delta: Arc<RouteDelta>, groups: BTreeMap<GroupKey, Group>, edits: BTreeMap<IpFamily, Edit> },
    Whole(Box<Planner>),
}

impl Planner {
    /// Plans a whole table.
    pub(crate) fn new(context: Arc<Context>, table: RouteTable) -> Self {
        let mut planner = Self {
            table: RouteTable::new(table.revision(), Arc::clone(table.node()), []),
            groups: BTreeMap::new(),
            families: context.families.iter().map(|f| (*f, FamilyPlan::default())).collect(),
            context,
        };
        let mut members: BTreeMap<GroupKey, Vec<Arc<Route>>> = BTreeMap::new();
        for route in table.routes() {
            members.entry(group_key(route)).or_default().push(Arc::clone(route));
        }
        let mut dispatch: BTreeMap<IpFamily, BTreeMap<_, _>> = BTreeMap::new();
        for (key, routes) in members {
            let plan = planner.context.group(&key.1, key.0, table.node(), &routes);
            let Some(family) = planner.families.get_mut(&key.0) else { continue };
            let group = Group {
                frontends: routes.iter().map(|r| r.frontend).collect(),
                chains: plan.chains.iter().map(|(name, _)| name.clone()).collect(),
                masquerades: plan.masquerades,
            };
            for masquerade in &group.masquerades {
                *family.masquerades.entry(*masquerade).or_default() += 1;
            }
            family.chains.extend(plan.chains.into_iter().map(|(name, rules)| ((Table::Nat, name), rules)));
            let rules = plan.dispatch.into_iter().map(|(frontend, dispatch)| (frontend, Some(dispatch)));
            dispatch.entry(key.0).or_default().extend(rules);
            planner.groups.insert(key, group);
        }
        let node = table.node();
        for (family, plan) in &mut planner.families {
            let context = &planner.context;
            plan.chains.extend(context.constant_chains(node, *family));
            plan.chains.extend([context.state_chain(table.revision(), node)]);
            let used = plan.masquerades.keys().copied().chain(context.usual_masquerade(node));
            let used = used.map(|m| context.masquerade_chain(m, node, *family));
            plan.chains.extend(used);
            let edit = plan.frontends.edit(dispatch.remove(family).unwrap_or_default());
            plan.frontends.commit(edit);
            let chains = plan.frontends.chains(context, node, *family);
            plan.chains.extend(chains.into_iter().filter_map(|(key, rules)| Some((key, rules?))));
        }
        planner.table = table;
        planner
    }

    /// The table that is planned.
    pub(crate) fn table(&self) -> &RouteTable {
        &self.table
    }

    /// The chains of a family.
    pub(crate) fn chains(&self, family: IpFamily) -> Option<&Chains> {
        self.families.get(&family).map(|plan| &plan.chains)
    }

    /// What a delta changes. Its base must be the table's revision.
    pub(crate) fn step(&self, delta: Arc<RouteDelta>) -> Step {
        if delta.node.is_some() {
            return self.whole_step(&delta);
        }
        let node = self.table.node();
        let upserts: BTreeMap<Frontend, &Arc<Route>> =
            delta.upserts.iter().map(|r| (r.frontend, r)).collect();
        // The groups that lose, gain or change a route.
        let mut members: BTreeMap<GroupKey, BTreeSet<Frontend>> = BTreeMap::new();
        let mut touch = |key: GroupKey, frontend: Frontend, stays: bool| {
            let of_group = members.entry(key).or_insert_with(|| {
                self.groups.get(&key).map(|group| group.frontends.clone()).unwrap_or_default()
            });
            if stays {
                of_group.insert(frontend)
            } else {
                of_group.remove(&frontend)
            };
        };
        for frontend in upserts.keys().chain(&delta.removals) {
            if let Some(old) = self.table.get(frontend) {
                touch(group_key(old), *frontend, false);
            }
        }
        for (frontend, route) in &upserts {
            touch(group_key(route), *frontend, true);
        }

        let mut changes: BTreeMap<IpFamily, ChainChanges> = BTreeMap::new();
        let mut dispatch: BTreeMap<Frontend, Option<Dispatch>> =
            delta.removals.iter().map(|f| (*f, None)).collect();
        let mut groups = BTreeMap::new();
        for (key, frontends) in members {
            let (family, hash) = key;
            let Some(current) = self.families.get(&family) else { continue };
            let routes: Vec<_> = frontends
                .iter()
                .filter_map(|f| upserts.get(f).copied().or_else(|| self.table.get(f)).cloned())
                .collect();
            let plan = self.context.group(&hash, family, node, &routes);
            let changes = changes.entry(family).or_default();
            let old = self.groups.get(&key).map(|g| g.chains.as_slice()).unwrap_or_default();
            for name in old {
                changes.insert((Table::Nat, name.clone()), None);
            }
            let mut chains = Vec::with_capacity(plan.chains.len());
            for (name, rules) in plan.chains {
                chains.push(name.clone());
                let key = (Table::Nat, name);
                if current.chains.get(&key) == Some(&rules) {
                    changes.remove(&key);
                } else {
                    changes.insert(key, Some(rules));
                }
            }
            dispatch.extend(plan.dispatch.into_iter().map(|(frontend, rules)| (frontend, Some(rules))));
            groups.insert(key, Group { frontends, chains, masquerades: plan.masquerades });
        }
        dispatch.retain(|frontend, rules| {
            let family = self.families.get(&frontend.family());
            family.is_some_and(|f| f.frontends.get(frontend) != rules.as_ref())
        });
        let mut edits = BTreeMap::new();
        for (family, current) in &self.families {
            let of_family: BTreeMap<_, _> =
                dispatch.extract_if(.., |frontend, _| frontend.family() == *family).collect();
            if !of_family.is_empty() {
                let edit = current.frontends.edit(of_family);
                let chains = current.frontends.changes(&edit, &self.context, node, *family);
                let changed =
                    chains.into_iter().filter(|(key, rules)| current.chains.get(key) != rules.as_ref());
                changes.entry(*family).or_default().extend(changed);
                edits.insert(*family, edit);
            }
            let uses = self.masquerade_uses(*family, &groups);
            let always = self.context.usual_masquerade(node);
            for (masquerade, now) in uses.into_iter().filter(|(m, _)| Some(*m) != always) {
                let before = current.masquerades.contains_key(&masquerade);
                let (key, rules) = self.context.masquerade_chain(masquerade, node, *family);
                match (before, now > 0) {
                    (false, true) => changes.entry(*family).or_default().insert(key, Some(rules)),
                    (true, false) => changes.entry(*family).or_default().insert(key, None),
                    _ => None,
                };
            }
        }
        changes.retain(|_, chains| !chains.is_empty());
        self.write_revision(&mut changes, &delta, node);
        Step { changes, next: Next::Parts { delta, groups, edits } }
    }

    /// How many groups use each masquerade chain after these groups are replaced.
    fn masquerade_uses(
        &self,
        family: IpFamily,
        next: &BTreeMap<GroupKey, Group>,
    ) -> BTreeMap<Masquerade, usize> {
        let mut uses = self.families.get(&family).map(|f| f.masquerades.clone()).unwrap_or_default();
        for (key, group) in next.iter().filter(|(key, _)| key.0 == family) {
            for masquerade in &group.masquerades {
                *uses.entry(*masquerade).or_default() += 1;
            }
            for masquerade in self.groups.get(key).iter().flat_map(|g| &g.masquerades) {
                if let Some(uses) = uses.get_mut(masquerade) {
                    *uses = uses.saturating_sub(1);
                }
            }
        }
        uses
    }

    /// The revision goes into each family that changes, and into the first one when none does.
    fn write_revision(
        &self,
        changes: &mut BTreeMap<IpFamily, ChainChanges>,
        delta: &RouteDelta,
        node: &NodeRouting,
    ) {
        if changes.is_empty()
            && let Some(first) = self.context.families.first()
        {
            changes.insert(*first, ChainChanges::new());
        }
        for chains in changes.values_mut() {
            let (key, rules) = self.context.state_chain(delta.revision, node);
            chains.insert(key, Some(rules));
        }
    }

    /// The node's facts are in many chains: plan everything again and compare.
    fn whole_step(&self, delta: &RouteDelta) -> Step {
        let mut table = self.table.clone();
        // The caller compared the revisions.
        let _ = table.apply(delta);
        let next = Planner::new(Arc::clone(&self.context), table);
        let changes = next
            .families
            .iter()
            .map(|(family, plan)| {
                let old = self.families.get(family).map(|old| &old.chains);
                (*family, changes(old.unwrap_or(&Chains::new()), &plan.chains))
            })
            .collect();
        Step { changes, next: Next::Whole(Box::new(next)) }
    }

    /// Takes a step.
    pub(crate) fn commit(&mut self, step: Step) {
        let (delta, groups, edits) = match step.next {
            Next::Whole(planner) => {
                *self = *planner;
                return;
            }
            Next::Parts { delta, groups, edits } => (delta, groups, edits),
        };
        let _ = self.table.apply(&delta);
        for family in self.context.families.clone() {
            let uses = self.masquerade_uses(family, &groups);
            if let Some(plan) = self.families.get_mut(&family) {
                plan.masquerades = uses.into_iter().filter(|(_, n)| *n > 0).collect();
            }
        }
        for (key, group) in groups {
            if group.frontends.is_empty() {
                self.groups.remove(&key);
            } else {
                self.groups.insert(key, group);
            }
        }
        for (family, edit) in edits {
            if let Some(plan) = self.families.get_mut(&family) {
                plan.frontends.commit(edit);
            }
        }
        for (family, changes) in step.changes {
            let Some(plan) = self.families.get_mut(&family) else { continue };
            for (key, rules) in changes {
                match rules {
                    Some(rules) => plan.chains.insert(key, rules),
                    None => plan.chains.remove(&key),
                };
            }
        }
    }
}

/// What makes `new` of `old`.
pub(crate) fn changes(old: &Chains, new: &Chains) -> ChainChanges {
    let gone = old.keys().filter(|key| !new.contains_key(*key)).map(|key: &ChainKey| (key.clone(), None));
    let set = new.iter().filter(|(key, rules)| old.get(*key) != Some(*rules));
    gone.chain(set.map(|(key, rules)| (key.clone(), Some(Arc::clone(rules))))).collect()
}

impl Planner {
    /// The chains that flows to a route may pass, except those that dispatch.
    pub(crate) fn chains_of(&self, route: &Route) -> Vec<ChainKey> {
        let names = &self.context.names;
        let mut chains = vec![
            (Table::Nat, names.mark_masq.clone()),
            (Table::Nat, names.postrouting.clone()),
            (Table::Filter, names.forward.clone()),
            (Table::Filter, names.no_port.clone()),
        ];
        if let Some(group) = self.groups.get(&group_key(route)) {
            chains.extend(group.chains.iter().map(|name| (Table::Nat, name.clone())));
            chains.extend(group.masquerades.iter().map(|m| (Table::Nat, names.masquerade(*m))));
        }
        let usual = self.context.usual_masquerade(self.table.node());
        chains.extend(usual.map(|m| (Table::Nat, names.masquerade(m))));
        chains
    }

    /// The chains that dispatch in a family.
    pub(crate) fn dispatch_keys(&self, family: IpFamily) -> Vec<ChainKey> {
        let names = &self.context.names;
        let dispatches = |chain: &ChainName| {
            [&names.services, &names.node_ports, &names.external_services].contains(&chain)
                || names.is_part(chain)
        };
        let chains = self.chains(family).into_iter().flat_map(Chains::keys);
        chains.filter(|(_, chain)| dispatches(chain)).cloned().collect()
    }

    /// The rules that lead to a frontend's backends or answers, by chain.
    pub(crate) fn dispatch_of(&self, frontend: &Frontend) -> Vec<(ChainKey, Vec<Rule>)> {
        let family = self.families.get(&frontend.family());
        family.map(|f| f.frontends.ways(&self.context, self.table.node(), frontend)).unwrap_or_default()
    }
}
