//! A chain that is there as long as nobody flushed the tables, and is cheap to look for.

use kubenet_core::{
    datapath::{DatapathError, ErrorKind},
    model::IpFamily,
};

use super::Engine;
use crate::{exec::Tools, rule::ChainName};

/// A table that holds few rules, and none of ours.
const TABLE: &str = "mangle";

fn made(chain: &ChainName, delete: bool) -> String {
    let delete = if delete { format!("-X {chain}\n") } else { String::new() };
    format!("*{TABLE}\n:{chain} - [0:0]\n{delete}COMMIT\n")
}

impl Engine {
    /// Makes the canaries that are not known to be there. Rules serve without, so a failure is not one of the
    /// update.
    pub(super) fn set_canaries(&mut self) {
        for tools in &self.tools {
            let family = tools.family;
            if self.canaries.contains(&family) || self.no_canary.contains(&family) {
                continue;
            }
            match tools.restore(&made(&self.context.names.canary, false)) {
                Ok(()) => self.canaries.extend([family]),
                Err(error) => {
                    tracing::info!(%family, %error, "no canary: a flush is found by audits only");
                    // Another failure may pass.
                    self.no_canary.extend((error.kind == ErrorKind::Unsupported).then_some(family));
                }
            }
        }
    }

    /// Takes a family's canary away, where there is one.
    pub(super) fn remove_canary(&self, tools: &Tools) -> Result<(), crate::exec::ExecError> {
        // Asking the legacy programs for a table makes the kernel create it.
        if self.has_canary(tools)? { tools.restore(&made(&self.context.names.canary, true)) } else { Ok(()) }
    }

    fn has_canary(&self, tools: &Tools) -> Result<bool, crate::exec::ExecError> {
        if !tools.has_table(TABLE) {
            return Ok(false);
        }
        let declared = format!(":{} ", self.context.names.canary);
        Ok(tools.save_table(TABLE)?.lines().any(|line| line.starts_with(&declared)))
    }

    /// Whether the canaries of all families are there.
    pub(crate) fn intact(&mut self) -> Result<bool, DatapathError> {
        const OPERATION: &str = "is_intact";
        self.check_open(OPERATION)?;
        if self.planner.is_none() {
            let message = "no table is programmed; call replace first";
            return Err(self.error(OPERATION, ErrorKind::Conflict, message));
        }
        let missing: Vec<IpFamily> =
            self.tools.iter().map(|t| t.family).filter(|f| !self.canaries.contains(f)).collect();
        if let Some(family) = missing.first() {
            let message =
                format!("{family}: the table {TABLE} could not be used: compare with read() instead");
            let lacking = self.no_canary.contains(family);
            let kind = if lacking { ErrorKind::Unsupported } else { ErrorKind::Unavailable };
            return Err(self.error(OPERATION, kind, message));
        }
        for tools in &self.tools {
            if !self.has_canary(tools).map_err(|error| self.exec_error(OPERATION, tools.family, error))? {
                // Whoever took it may have taken more: look before the next update, and set it anew.
                self.unsure.extend([tools.family]);
                self.canaries.remove(&tools.family);
                return Ok(false);
            }
        }
        Ok(true)
    }
}
