//! Runs the transactions of all families, and takes them back when one fails.

use std::collections::BTreeSet;

use kubenet_core::{datapath::DatapathError, model::IpFamily};

use super::Engine;
use crate::{
    exec::{ExecError, Tools},
    plan::Jump,
    rule::Chains,
    save::Saved,
    work::Work,
};

impl Engine {
    pub(super) fn execute(
        &mut self,
        operation: &'static str,
        works: Vec<Work>,
        wanted: &dyn Fn(IpFamily) -> Option<Chains>,
        jumps: &[Jump],
    ) -> Result<BTreeSet<IpFamily>, DatapathError> {
        self.execute_all(operation, works, wanted, jumps).map_err(|failure| {
            self.unsure.extend(failure.unsure);
            failure.error
        })
    }

    /// Runs the transactions of all families, or none: when one fails, those before it are taken back. The
    /// result are the families in which something is left to tidy up.
    pub(super) fn execute_all(
        &self,
        operation: &'static str,
        works: Vec<Work>,
        wanted: &dyn Fn(IpFamily) -> Option<Chains>,
        jumps: &[Jump],
    ) -> Result<BTreeSet<IpFamily>, Failure> {
        let mut done: Vec<(&Tools, Work)> = Vec::new();
        let mut untidy = BTreeSet::new();
        for work in works {
            let Some(tools) = self.tools.iter().find(|tools| tools.family == work.family) else { continue };
            let mut result = work.run(tools, &self.context.names);
            if result.as_ref().is_err_and(ExecError::is_refusal) {
                // Somebody may have changed our chains: look, and try once more from what is there.
                result = tools.save().and_then(|text| {
                    let saved = Saved::parse(&text, &self.context.names);
                    let again =
                        Work::towards(work.family, &saved, &wanted(work.family).unwrap_or_default(), jumps);
                    again.run(tools, &self.context.names)
                });
            }
            match result {
                Ok(left) => {
                    if let Some(error) = left {
                        let family = work.family;
                        tracing::warn!(%family, %error, "chains without use are left; the next call looks again");
                        untidy.insert(family);
                    }
                    done.push((tools, work));
                }
                Err(error) => return Err(self.take_back(operation, tools, &work, error, done)),
            }
        }
        Ok(untidy)
    }

    fn take_back(
        &self,
        operation: &'static str,
        tools: &Tools,
        failed: &Work,
        error: ExecError,
        done: Vec<(&Tools, Work)>,
    ) -> Failure {
        let mut unsure = BTreeSet::from([failed.family]);
        let mut message = format!("{}: {}", failed.family, error.message);
        let mut left = |family, error: ExecError| {
            message.push_str(&format!(
                "; {family} could not be put back and may hold the new rules until the next call: {}",
                error.message
            ));
        };
        // iptables commits table by table: the first may have passed.
        let names = &self.context.names;
        let recovered =
            tools.save().and_then(|text| failed.recovery(&Saved::parse(&text, names)).run(tools, names));
        match recovered {
            Ok(None) => drop(unsure.remove(&failed.family)),
            // Only chains without use.
            Ok(Some(_)) => {}
            Err(error) => left(failed.family, error),
        }
        for (tools, work) in done {
            match work.inverse().run(tools, names) {
                Ok(None) => {}
                Ok(Some(_)) => unsure.extend([work.family]),
                Err(error) => {
                    unsure.insert(work.family);
                    left(work.family, error);
                }
            }
        }
        let error = match error.source {
            Some(source) => DatapathError::with_source(self.name, operation, error.kind, message, source),
            None => self.error(operation, error.kind, message),
        };
        Failure { error, unsure }
    }
}

/// A failed update, and the families of which the kernel may hold something else.
pub(super) struct Failure {
    pub(super) error: DatapathError,
    pub(super) unsure: BTreeSet<IpFamily>,
}
