//! Keeps accounts. What it is told to do, it does: who may tell it is not its business.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use demo_agents::agent::{Agent, Work, run};
use demo_agents::json::Json;

/// Accounts that the ledger opens at most.
const MAX_ACCOUNTS: usize = 1_000;

#[derive(Default)]
struct Ledger {
    accounts: Mutex<BTreeMap<String, f64>>,
}

impl Work for Ledger {
    fn tool(&self, agent: &Agent, name: &str, arguments: &Json) -> Result<Json, String> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if accounts.is_empty() {
            let opening = agent.declared.get("accounts").members();
            accounts.extend(opening.iter().filter_map(|(k, v)| Some((k.clone(), v.as_f64()?))));
        }
        let account = |key: &str| {
            arguments
                .get(key)
                .as_str()
                .map(str::to_owned)
                .ok_or(format!("{key} is missing"))
        };
        match name {
            "balance" => {
                let name = account("account")?;
                let balance = accounts
                    .get(&name)
                    .copied()
                    .ok_or(format!("there is no account {name:?}"))?;
                Ok(Json::object([("account", name.into()), ("balance", balance.into())]))
            }
            "transfer" => {
                let (from, to) = (account("from")?, account("to")?);
                let amount = arguments
                    .get("amount")
                    .as_f64()
                    .filter(|a| *a > 0.0)
                    .ok_or("amount must be above 0")?;
                let left = accounts.get(&from).copied().unwrap_or_default() - amount;
                if left < 0.0 || accounts.len() >= MAX_ACCOUNTS {
                    return Err(format!("{from} can't pay {amount}"));
                }
                accounts.insert(from.clone(), left);
                *accounts.entry(to.clone()).or_default() += amount;
                Ok(Json::object([
                    ("from", from.into()),
                    ("to", to.into()),
                    ("amount", amount.into()),
                ]))
            }
            "close_books" => {
                let count = accounts.len();
                accounts.values_mut().for_each(|balance| *balance = 0.0);
                Ok(Json::object([("closed", (count as f64).into())]))
            }
            other => Err(format!("{other} is declared but not built")),
        }
    }
}

fn main() -> ExitCode {
    run(Ledger::default())
}
