//! The library modules that policies may import as `data.aip.lib.<name>`.

/// Name and text of each module.
pub(crate) const MODULES: [(&str, &str); 4] = [
    ("assurance", include_str!("../../../policies/lib/assurance.rego")),
    ("http", include_str!("../../../policies/lib/http.rego")),
    ("time", include_str!("../../../policies/lib/time.rego")),
    ("trust", include_str!("../../../policies/lib/trust.rego")),
];

/// The modules that one of the texts names, and those that these name. A word is enough: one too many costs nothing.
pub(crate) fn used_by<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<(&'static str, &'static str)> {
    let mut used = [false; MODULES.len()];
    let mark = |text: &str, used: &mut [bool]| {
        for (index, (name, _)) in MODULES.iter().enumerate() {
            used[index] |= text.contains(&format!("aip.lib.{name}"));
        }
    };
    texts.for_each(|text| mark(text, &mut used));
    // Library modules stand alone, so one pass is all.
    MODULES
        .into_iter()
        .zip(used)
        .filter_map(|(module, used)| used.then_some(module))
        .collect()
}
