/// Key of the taint that the cluster autoscaler sets on a node before it deletes it.
pub const TO_BE_DELETED_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// Whether new traffic may come to this node, from the node's own object ([H2]).
///
/// [H2]: crate::health
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NodeEligibility {
    /// It may. Also while nothing is known of the node's object.
    #[default]
    Eligible,
    /// The cluster has no such node.
    Missing,
    /// The object has a deletion timestamp.
    BeingDeleted,
    /// It has the taint [`TO_BE_DELETED_TAINT`].
    Tainted,
}

impl NodeEligibility {
    /// That of an existing node: whether it has a deletion timestamp, and the keys of its taints.
    pub fn of<'a>(being_deleted: bool, taint_keys: impl IntoIterator<Item = &'a str>) -> Self {
        if being_deleted {
            NodeEligibility::BeingDeleted
        } else if taint_keys.into_iter().any(|key| key == TO_BE_DELETED_TAINT) {
            NodeEligibility::Tainted
        } else {
            NodeEligibility::Eligible
        }
    }

    /// Whether it is [`NodeEligibility::Eligible`].
    pub fn is_eligible(self) -> bool {
        self == NodeEligibility::Eligible
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h2_a_deleted_or_tainted_node_is_not_eligible() {
        let other = ["node.kubernetes.io/unschedulable"];
        assert_eq!(NodeEligibility::of(false, other), NodeEligibility::Eligible);
        assert_eq!(NodeEligibility::of(true, other), NodeEligibility::BeingDeleted);
        let tainted = [other[0], "ToBeDeletedByClusterAutoscaler"];
        assert_eq!(NodeEligibility::of(false, tainted), NodeEligibility::Tainted);
        assert_eq!(NodeEligibility::of(true, tainted), NodeEligibility::BeingDeleted);
        assert_eq!(NodeEligibility::of(false, ["tobedeletedbyclusterautoscaler"]), NodeEligibility::Eligible);
        for not in [NodeEligibility::Missing, NodeEligibility::BeingDeleted, NodeEligibility::Tainted] {
            assert!(!not.is_eligible());
        }
    }
}
