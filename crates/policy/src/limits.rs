//! Every bound of this crate, with the reason for its number.

use std::num::NonZeroU32;
use std::time::Duration;

/// Bytes of one policy module, or of one test module. The largest policy of our library has 4 KiB; the engine compiles
/// 64 KiB in tens of milliseconds, and nobody reviews more than that in one file.
pub const MAX_MODULE_BYTES: usize = 64 * 1024;

/// Nested `(`, `[` and `{` in a module. The parser's work doubles with every nested literal (depth 16: 90 ms, 22: 5.5 s,
/// 24: minutes), so depth is bounded before it sees the text. At 10 it needs about a millisecond.
pub const MAX_BRACKET_DEPTH: usize = 10;

/// Tokens of a module, each counted as often as the parser reads it: twice for every bracket around it. A million takes
/// about 80 ms; a full module of ordinary nesting has a tenth of that.
pub const MAX_PARSER_WORK: u64 = 1_000_000;

/// Operators, dots, calls and indexes in a row within one expression. The parser and the compiler recurse once for
/// each, and ten thousand of them end the process.
pub const MAX_EXPRESSION_CHAIN: usize = 64;

/// Levels of rules that call each other. Each is a frame on the worker's stack.
pub const MAX_CALL_DEPTH: usize = 64;

/// How often the parts of one value may repeat inside another, as far as the program's text alone says: a chain of
/// `x := [y, y]` doubles the work of every comparison at each step, and no instruction count sees it. At this
/// number a comparison of small parts takes about a millisecond.
pub const MAX_AMPLIFICATION: u64 = 65_536;

/// Bytes of a policy's own data, as compact JSON. In memory it is four to five times as much, on every worker.
pub const MAX_DATA_BYTES: usize = 256 * 1024;

/// Bytes of the mesh's data, as compact JSON. It holds what every policy of the mesh shares.
pub const MAX_MESH_DATA_BYTES: usize = 1024 * 1024;

/// Nested arrays and objects in data. Recursive code walks it; JSON documents that people write stay under ten.
pub const MAX_DATA_DEPTH: usize = 32;

/// Policies in one attached set.
pub const MAX_POLICIES: usize = 64;

/// Virtual-machine instructions of one decision. The library's largest policy uses about 300; 25,000 take 1 to 2 ms.
pub const MAX_INSTRUCTIONS: usize = 25_000;

/// Wall-clock time of one decision: a net for what the instruction count can't see (one long builtin call). Far above
/// what any admitted policy needs, so that a loaded machine never turns an allowed request into a denied one.
pub const MAX_EVALUATION: Duration = Duration::from_millis(250);

/// Instructions between two looks at the clock.
pub const TIMER_INTERVAL: NonZeroU32 = match NonZeroU32::new(256) {
    Some(interval) => interval,
    None => NonZeroU32::MIN,
};

/// Bytes and elements that the builtins of one decision may produce together, and that one call may be given. One call is
/// one instruction, whatever it makes; bodies that policies read are smaller than this.
pub const MAX_PRODUCED: usize = 1024 * 1024;

/// Bytes and elements that the builtins of one decision may be given together. The largest body fits several times; a
/// loop that counts, sorts or prints it at each turn doesn't.
pub const MAX_EXAMINED: usize = 8 * 1024 * 1024;

/// Numbers that one call of `numbers.range` or `numbers.range_step` may produce.
pub const MAX_RANGE: i64 = 10_000;

/// Rules that may fire in one decision. More than this can't be explained to anybody.
pub const MAX_FIRED_RULES: usize = 64;

/// Bytes of a rule id.
pub const MAX_RULE_ID_BYTES: usize = 128;

/// Bytes of a reason; longer ones are cut. It travels in a header-sized problem document and in the access log.
pub const MAX_REASON_BYTES: usize = 512;

/// Entries in each list of an obligation.
pub const MAX_OBLIGATION_ENTRIES: usize = 64;

/// Compiled sets that one worker keeps. A sidecar has one for inbound and one for each kind of destination it calls;
/// during a rollout the old and the new.
pub const MAX_SETS_PER_WORKER: usize = 16;

/// Cached decisions of one worker, over all sets.
pub const MAX_CACHED_DECISIONS: usize = 4096;

/// Cached decisions of one worker for one caller, so that a caller that varies its requests evicts only itself.
pub const MAX_CACHED_PER_CALLER: usize = 512;

/// Bytes of the facts that key a cached decision; larger requests are decided afresh each time.
pub const MAX_CACHE_KEY_BYTES: usize = 8 * 1024;

/// Bytes of that key up to which the facts that are kept of a decision are cached with it: as JSON they take several
/// times as much memory.
pub const MAX_KEPT_KEY_BYTES: usize = 1024;

/// Step in seconds of `attestation.age`, so that it doesn't make every request a new cache key.
pub const AGE_STEP_SECONDS: u64 = 10;
