//! All that a command started, also what left its process group: whatever loses its parent becomes a child of this
//! process, so that nothing of it is out of sight.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, pidfd_open, pidfd_send_signal, set_child_subreaper, waitpid,
};
use tokio::time::Instant;

use super::LOOK;
use crate::exit::{Exit, Failure};

/// How long what is sent SIGKILL may take to be gone: a process that waits for a disk takes its time.
const GONE: Duration = Duration::from_secs(5);

/// A process, as the kernel lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Listed {
    pid: Pid,
    parent: i32,
    /// It has ended, and nobody has asked how.
    zombie: bool,
    /// In ticks since the machine began: a number that was given again is another process.
    started: u64,
}

/// What is left of a command after its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Left {
    /// Nothing; it was looked for.
    Nothing,
    /// These processes run on.
    Processes(Vec<i32>),
    /// It can't be told.
    Unknown(String),
}

/// The processes below this one.
#[derive(Debug)]
pub(crate) struct Descendants {
    /// Those that are nobody's of ours: they were there before.
    others: BTreeSet<(i32, u64)>,
}

impl Descendants {
    /// From now on whatever loses its parent below this process comes to it.
    pub(crate) fn adopt() -> Result<Self, Failure> {
        let failed = |e: io::Error| {
            Failure::new(Exit::Failed, "the command's processes can't be kept in sight").why(e.to_string())
        };
        set_child_subreaper(Some(getpid())).map_err(|e| failed(e.into()))?;
        let all = listed().map_err(failed)?;
        let before = all.iter().filter(|p| p.parent == raw(getpid()));
        Ok(Self {
            others: before.map(|p| (raw(p.pid), p.started)).collect(),
        })
    }

    /// Sends a signal to all but these children and what they started.
    pub(crate) fn signal(&self, except: &[u32], signal: Signal) {
        for process in self.all(except).iter().flatten() {
            send(process, signal);
        }
    }

    /// Waits up to `grace` for all but these children and what they started to end, then ends them; answers what is
    /// left. Whoever started the command has waited for it.
    pub(crate) async fn end(&self, except: &[u32], grace: Duration) -> Left {
        let begun = Instant::now();
        loop {
            let left = match self.reaped(except) {
                Ok(all) => all,
                Err(error) => return Left::Unknown(error.to_string()),
            };
            let over = begun.elapsed();
            match left.is_empty() {
                true => return Left::Nothing,
                false if over >= grace + GONE => return Left::Processes(left.iter().map(|p| raw(p.pid)).collect()),
                false if over >= grace => left.iter().for_each(|p| send(p, Signal::KILL)),
                false => {}
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Takes note of adopted processes that have ended, so that they do not stay listed. These children are waited for
    /// where they were started.
    pub(crate) fn reap(&self, except: &[u32]) {
        let _ = self.reaped(except);
    }

    /// All that run, as [`Self::all`], where what has ended is taken note of.
    fn reaped(&self, except: &[u32]) -> io::Result<Vec<Listed>> {
        let mut all = self.all(except)?;
        for process in all.iter().filter(|p| p.zombie && p.parent == raw(getpid())) {
            let _ = waitpid(Some(process.pid), WaitOptions::NOHANG);
        }
        all.retain(|p| !p.zombie);
        Ok(all)
    }

    /// All but these children and what they started.
    fn all(&self, except: &[u32]) -> io::Result<Vec<Listed>> {
        let is_other =
            |p: &Listed| self.others.contains(&(raw(p.pid), p.started)) || except.contains(&raw(p.pid).cast_unsigned());
        Ok(below(raw(getpid()), &listed()?, is_other))
    }
}

fn raw(pid: Pid) -> i32 {
    pid.as_raw_nonzero().get()
}

/// All below `root`, without the children of it that are `other`'s and what is below those.
fn below(root: i32, all: &[Listed], is_other: impl Fn(&Listed) -> bool) -> Vec<Listed> {
    let mut below: Vec<Listed> = Vec::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for process in all.iter().filter(|p| p.parent == parent) {
            if parent == root && is_other(process) {
                continue;
            }
            below.push(*process);
            parents.push(raw(process.pid));
        }
    }
    below
}

/// Sends a signal to this very process: not to another that came to have its number.
fn send(process: &Listed, signal: Signal) {
    let Ok(handle) = pidfd_open(process.pid, PidfdFlags::empty()) else {
        return;
    };
    if read(process.pid).is_some_and(|now| now.started == process.started) {
        let _ = pidfd_send_signal(handle, signal);
    }
}

fn listed() -> io::Result<Vec<Listed>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let pid = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        // One that ended since it was listed is none.
        all.extend(pid.and_then(Pid::from_raw).and_then(read));
    }
    match all.iter().any(|p| p.pid == getpid()) {
        true => Ok(all),
        false => Err(io::Error::other("/proc does not list the processes here")),
    }
}

fn read(pid: Pid) -> Option<Listed> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", raw(pid))).ok()?;
    parse(pid, &stat)
}

/// proc_pid_stat(5): the state is field 3, the parent 4, the start 22; the name before them may hold anything.
fn parse(pid: Pid, stat: &str) -> Option<Listed> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let started = fields.nth(17)?.parse().ok()?;
    Some(Listed {
        pid,
        parent,
        zombie: matches!(state, "Z" | "X"),
        started,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32) -> Listed {
        Listed {
            pid: Pid::from_raw(pid).unwrap(),
            parent,
            zombie: false,
            started: 1,
        }
    }

    #[test]
    fn what_is_below_a_process_is_found_at_any_depth_and_nothing_else_is() {
        let all = [
            process(9, 1),
            process(10, 9),
            process(11, 9),
            process(12, 10),
            process(13, 12),
            process(14, 11),
            process(15, 1),
        ];
        let found = below(9, &all, |p| raw(p.pid) == 11);
        assert_eq!(found.iter().map(|p| raw(p.pid)).collect::<Vec<_>>(), [10, 12, 13]);
    }

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let stat = "7 (a) S 1 (b) Z 4 7 7 0 -1 1 2 3 4 5 6 7 8 9 20 0 1 0 4711 0 0";
        let listed = parse(Pid::from_raw(7).unwrap(), stat).unwrap();
        assert_eq!((listed.parent, listed.zombie, listed.started), (4, true, 4711));
        let own = read(getpid()).unwrap();
        assert!(own.started > 0 && !own.zombie && own.parent > 0);
    }
}
