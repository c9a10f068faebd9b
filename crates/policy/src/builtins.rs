//! Which builtins policies may call.

/// What a builtin is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Its result depends on its arguments only.
    Pure,
    /// Its result changes by itself: only in policies that say `# aip:volatile`, which are not cached.
    Volatile,
    /// Not for policies.
    Refused,
}

/// Builtins whose result depends on their arguments only. Those whose result can be much larger than their arguments
/// are bounded at each call.
pub const PURE: &[&str] = &[
    "abs",
    "array.concat",
    "array.reverse",
    "array.slice",
    "bits.and",
    "bits.lsh",
    "bits.negate",
    "bits.or",
    "bits.rsh",
    "bits.xor",
    "ceil",
    "concat",
    "contains",
    "count",
    "endswith",
    "floor",
    "format_int",
    "glob.match",
    "glob.quote_meta",
    "indexof",
    "indexof_n",
    "intersection",
    "is_array",
    "is_boolean",
    "is_null",
    "is_number",
    "is_object",
    "is_set",
    "is_string",
    "json.filter",
    "json.marshal",
    "json.remove",
    "lower",
    "max",
    "min",
    "net.cidr_contains",
    "net.cidr_is_valid",
    "numbers.range",
    "numbers.range_step",
    "object.filter",
    "object.get",
    "object.keys",
    "object.remove",
    "object.subset",
    "object.union",
    "object.union_n",
    "product",
    "regex.find_n",
    "regex.is_valid",
    "regex.match",
    "regex.replace",
    "regex.split",
    "regex.template_match",
    "replace",
    "round",
    "semver.compare",
    "semver.is_valid",
    "sort",
    "split",
    "sprintf",
    "startswith",
    "strings.any_prefix_match",
    "strings.any_suffix_match",
    "strings.count",
    "strings.replace_n",
    "strings.reverse",
    "substring",
    "sum",
    "time.add_date",
    "time.clock",
    "time.date",
    "time.diff",
    "time.parse_duration_ns",
    "time.parse_rfc3339_ns",
    "time.weekday",
    "to_number",
    "trim",
    "trim_left",
    "trim_prefix",
    "trim_right",
    "trim_space",
    "trim_suffix",
    "type_name",
    "union",
    "upper",
    "__builtin_sets.intersection",
    "__builtin_sets.union",
];

/// Builtins whose result changes by itself. `input.time` and `input.trace.id` serve most policies better: a decision on
/// them can be cached, and made again from the same facts.
pub const VOLATILE: &[&str] = &["rand.intn", "time.now_ns"];

pub(crate) fn class(name: &str) -> Class {
    if PURE.contains(&name) {
        Class::Pure
    } else if VOLATILE.contains(&name) {
        Class::Volatile
    } else {
        Class::Refused
    }
}

pub(crate) fn refusal(name: &str) -> &'static str {
    match class(name) {
        Class::Volatile => "its result changes by itself; use input.time or input.trace.id, or say `# aip:volatile`",
        _ => "it is not among the builtins that policies may call",
    }
}
