//! From routes to chains and rules. Pure: nothing here touches the kernel.
//!
//! A [`Planner`] holds the plan of a table; [`Planner::step`] says which chains a delta changes, at a cost
//! that follows the delta, and [`Planner::commit`] takes the step once the kernel has it.

mod fixed;
mod group;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kubenet_core::{
    model::IpFamily,
    route::{Frontend, FrontendAddress, Masquerade, NodeRouting, Route, RouteDelta, RouteTable},
};

pub(crate) use self::fixed::Jump;
use crate::{
    names::{NameHash, Names},
    rule::{ChainChanges, ChainKey, ChainName, Chains, Rule, Table, Target},
};

/// What all plans of a datapath share.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) names: Names,
    /// Whether source ports of masqueraded flows can be chosen fully at random.
    pub(crate) random_fully: bool,
    pub(crate) families: Vec<IpFamily>,
}

/// The rules of one frontend in the dispatch chains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dispatch {
    pub(crate) nat: Vec<Rule>,
    pub(crate) filter: Vec<Rule>,
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
    dispatch: BTreeMap<Frontend, Dispatch>,
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
    Parts {
        delta: Arc<RouteDelta>,
        groups: BTreeMap<GroupKey, Group>,
        dispatch: BTreeMap<Frontend, Option<Dispatch>>,
    },
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
            family.dispatch.extend(plan.dispatch);
            planner.groups.insert(key, group);
        }
        let node = table.node();
        for (family, plan) in &mut planner.families {
            let context = &planner.context;
            plan.chains.extend(context.constant_chains());
            plan.chains.extend([context.state_chain(table.revision(), node)]);
            let used = plan.masquerades.keys().map(|m| context.masquerade_chain(*m, node, *family));
            plan.chains.extend(used);
            let dispatch = plan.dispatch.iter().map(|(f, d)| (is_node_port(f), d));
            let chains = context.dispatch_chains(node, *family, dispatch);
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
            family.is_some_and(|f| f.dispatch.get(frontend) != rules.as_ref())
        });
        for (family, current) in &self.families {
            let touched: BTreeMap<_, _> = dispatch.iter().filter(|(f, _)| f.family() == *family).collect();
            if !touched.is_empty() {
                let all = merged(&current.dispatch, &touched);
                let chains = self.context.dispatch_chains(node, *family, all);
                let changed =
                    chains.into_iter().filter(|(key, rules)| current.chains.get(key) != rules.as_ref());
                changes.entry(*family).or_default().extend(changed);
            }
            let uses = self.masquerade_uses(*family, &groups);
            for (masquerade, now) in uses {
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
        Step { changes, next: Next::Parts { delta, groups, dispatch } }
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
        let (delta, groups, dispatch) = match step.next {
            Next::Whole(planner) => {
                *self = *planner;
                return;
            }
            Next::Parts { delta, groups, dispatch } => (delta, groups, dispatch),
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
        for (frontend, rules) in dispatch {
            let Some(plan) = self.families.get_mut(&frontend.family()) else { continue };
            match rules {
                Some(rules) => plan.dispatch.insert(frontend, rules),
                None => plan.dispatch.remove(&frontend),
            };
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

fn is_node_port(frontend: &Frontend) -> bool {
    matches!(frontend.address, FrontendAddress::NodePort(_))
}

/// The dispatch rules of all frontends after some were replaced.
fn merged<'a>(
    current: &'a BTreeMap<Frontend, Dispatch>,
    touched: &'a BTreeMap<&Frontend, &'a Option<Dispatch>>,
) -> impl Iterator<Item = (bool, &'a Dispatch)> {
    let frontends: BTreeSet<&Frontend> = current.keys().chain(touched.keys().copied()).collect();
    frontends.into_iter().filter_map(move |frontend| {
        let rules = match touched.get(frontend) {
            Some(rules) => rules.as_ref(),
            None => current.get(frontend),
        };
        Some((is_node_port(frontend), rules?))
    })
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
        ];
        if let Some(group) = self.groups.get(&group_key(route)) {
            chains.extend(group.chains.iter().map(|name| (Table::Nat, name.clone())));
            chains.extend(group.masquerades.iter().map(|m| (Table::Nat, names.masquerade(*m))));
        }
        chains
    }

    /// The chains that dispatch.
    pub(crate) fn dispatch_keys(&self) -> [ChainKey; 5] {
        let names = &self.context.names;
        [
            (Table::Nat, names.services.clone()),
            (Table::Nat, names.node_ports.clone()),
            (Table::Filter, names.services.clone()),
            (Table::Filter, names.external_services.clone()),
            (Table::Filter, names.node_ports.clone()),
        ]
    }

    /// The rules that lead to a frontend's backends or answers, by chain.
    pub(crate) fn dispatch_of(&self, frontend: &Frontend) -> Vec<(ChainKey, &[Rule])> {
        let names = &self.context.names;
        let rules = self.families.get(&frontend.family()).and_then(|family| family.dispatch.get(frontend));
        let (nat, filter) = rules.map_or((&[][..], &[][..]), |rules| (&rules.nat, &rules.filter));
        if !is_node_port(frontend) {
            return vec![
                ((Table::Nat, names.services.clone()), nat),
                ((Table::Filter, names.services.clone()), filter),
            ];
        }
        let mut all = vec![
            ((Table::Nat, names.node_ports.clone()), nat),
            ((Table::Filter, names.node_ports.clone()), filter),
        ];
        // The way to the node ports.
        for (table, chain) in [(Table::Nat, &names.services), (Table::Filter, &names.external_services)] {
            let key = (table, chain.clone());
            let rules = self.chains(frontend.family()).and_then(|chains| chains.get(&key));
            let rules = rules.map(|rules| &rules[..]).unwrap_or_default();
            // They come last.
            let ports = Target::Jump(names.node_ports.clone());
            let first = rules.iter().position(|rule| rule.target.as_ref() == Some(&ports));
            all.push((key, first.map_or(&[][..], |first| &rules[first..])));
        }
        all
    }
}
