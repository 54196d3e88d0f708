//! Empty chains that say something by being there: one that nobody flushed the tables, as long as it is there, and is
//! cheap to look for; and what a later run must know.

use kubenet_core::{
    datapath::{DatapathError, ErrorKind},
    model::IpFamily,
};

use super::Engine;
use crate::{
    exec::{ExecError, Tools},
    rule::ChainName,
};

/// A table that holds few rules, and none of ours.
const TABLE: &str = "mangle";

/// Makes the chain, where there is none.
pub(super) fn put(tools: &Tools, chain: &ChainName) -> Result<(), ExecError> {
    tools.restore(&format!("*{TABLE}\n:{chain} - [0:0]\nCOMMIT\n"))
}

/// Takes the chain away, where there is one.
pub(super) fn take_away(tools: &Tools, chain: &ChainName) -> Result<(), ExecError> {
    // Asking the legacy programs for a table makes the kernel create it.
    if is_there(tools, chain)? {
        tools.restore(&format!("*{TABLE}\n:{chain} - [0:0]\n-X {chain}\nCOMMIT\n"))
    } else {
        Ok(())
    }
}

pub(super) fn is_there(tools: &Tools, chain: &ChainName) -> Result<bool, ExecError> {
    if !tools.has_table(TABLE) {
        return Ok(false);
    }
    let declared = format!(":{chain} ");
    Ok(tools.save_table(TABLE)?.lines().any(|line| line.starts_with(&declared)))
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
            match put(tools, &self.context.names.canary) {
                Ok(()) => self.canaries.extend([family]),
                Err(error) => {
                    tracing::info!(%family, %error, "no canary: a flush is found by audits only");
                    // Another failure may pass.
                    self.no_canary.extend((error.kind == ErrorKind::Unsupported).then_some(family));
                }
            }
        }
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
            if !is_there(tools, &self.context.names.canary)
                .map_err(|error| self.exec_error(OPERATION, tools.family, error))?
            {
                // Whoever took it may have taken more: look before the next update, and set it anew.
                self.unsure.extend([tools.family]);
                self.canaries.remove(&tools.family);
                return Ok(false);
            }
        }
        Ok(true)
    }
}
