//! Which linear layers get an adapter: patterns over whole path components.
//!
//! A pattern is one or more components separated by dots. It matches a path that contains these components next to
//! each other, each whole: `query` matches `encoder.layer.0.attention.self.query` but not `query_proj`,
//! `output.dense` matches both output layers of a BERT block, `layer.*.output.dense` only that of the feed-forward
//! part, `layer.3` every layer of block 3. `*` stands for any one component, so that `*` alone matches every layer.
//!
//! Braces list alternatives, and numbers with a dash between are all from the first to the last: `layer.{0-3}` is
//! every layer of blocks 0 to 3, `{query,value}_proj` two kinds of layer, `layer.{0,4-6}.intermediate` one kind in four
//! blocks. It means the same as a pattern for each alternative, and each must match a layer.

use std::fmt;

/// Why patterns select nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetError {
    /// A pattern that cannot be read.
    Malformed(Malformed),
    /// Patterns, or alternatives of them, that no layer of the model matches.
    NoMatch(Vec<Unmatched>),
}

/// A pattern that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// The pattern.
    pub pattern: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

/// A pattern that no layer of the model matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmatched {
    /// The pattern, or one alternative of it.
    pub pattern: String,
    /// The pattern with all its alternatives, where it has several.
    pub of: Option<String>,
    /// What it may have been meant to be.
    pub near: Near,
}

/// What the model has instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Near {
    /// Layer names that come nearest.
    Names(Vec<String>),
    /// The smallest and the largest number where the pattern has another one.
    Numbers(usize, usize),
}

impl std::error::Error for TargetError {}

impl std::error::Error for Malformed {}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the pattern `{}` {}", self.pattern, self.rule)
    }
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unmatched = match self {
            Self::Malformed(malformed) => return malformed.fmt(f),
            Self::NoMatch(unmatched) => unmatched,
        };
        for (i, Unmatched { pattern, of, near }) in unmatched.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            write!(f, "no layer matches `{pattern}`")?;
            if let Some(of) = of {
                write!(f, " of `{of}`")?;
            }
            match near {
                Near::Names(names) => {
                    let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
                    write!(f, "; near it: {}", names.join(", "))?;
                }
                Near::Numbers(first, last) => write!(f, "; the numbers there are {first} to {last}")?,
            }
        }
        Ok(())
    }
}

/// Alternatives of one pattern. More are a typing mistake, which is not to fill the memory.
const MOST: usize = 1000;

/// The pattern without braces, or one for each of its alternatives in their order.
///
/// # Errors
///
/// Braces that do not close or hold nothing, and numbers that fall.
pub fn expand(pattern: &str) -> Result<Vec<String>, Malformed> {
    let malformed = |rule| Malformed { pattern: pattern.to_owned(), rule };
    // What has been read so far, once for each combination of alternatives.
    let mut expanded = vec![String::new()];
    let mut rest = pattern;
    while let Some((before, after)) = rest.split_once('{') {
        let (inside, after) = after.split_once('}').ok_or(malformed("has a `{` without its `}`"))?;
        if before.contains('}') {
            return Err(malformed("has a `}` without its `{`"));
        }
        if inside.contains('{') {
            return Err(malformed("has braces within braces: write a pattern for each"));
        }
        let mut alternatives = Vec::new();
        for alternative in inside.split(',').map(str::trim) {
            if alternative.is_empty() {
                return Err(malformed("has an empty alternative in its braces"));
            }
            let numbers = alternative.split_once('-');
            match numbers.and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?))) {
                Some((first, last)) if first > last => {
                    return Err(malformed("has numbers that fall: write the smaller one first"));
                }
                Some((first, last)) if last - first >= MOST => {
                    return Err(malformed("has a range of numbers beyond any model's"));
                }
                Some((first, last)) => {
                    let range: std::ops::RangeInclusive<usize> = first..=last;
                    alternatives.extend(range.map(|number| number.to_string()));
                }
                None => alternatives.push(alternative.to_owned()),
            }
        }
        if expanded.len() * alternatives.len() > MOST {
            return Err(malformed("has braces that multiply to more patterns than any model has blocks"));
        }
        expanded = expanded
            .iter()
            .flat_map(|start| alternatives.iter().map(move |own| format!("{start}{before}{own}")))
            .collect();
        rest = after;
    }
    if rest.contains('}') {
        return Err(malformed("has a `}` without its `{`"));
    }
    Ok(expanded.into_iter().map(|start| start + rest).collect())
}

/// Whether the components of a pattern without braces stand next to each other in the path.
pub fn matches(pattern: &str, path: &str) -> bool {
    let pattern: Vec<_> = pattern.split('.').collect();
    let path: Vec<_> = path.split('.').collect();
    path.windows(pattern.len()).any(|part| are_alike(&pattern, part))
}

fn are_alike(pattern: &[&str], part: &[&str]) -> bool {
    pattern.iter().zip(part).all(|(wanted, found)| *wanted == "*" || wanted == found)
}

/// The paths that any pattern matches, in the order of `paths`.
///
/// # Errors
///
/// A pattern that cannot be read, or every one, alternatives counted alone, that matches nothing, with what comes
/// near: one that silently selects no layer is the usual typing mistake.
pub fn select<'a>(
    patterns: &[String],
    paths: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<usize>, TargetError> {
    let paths: Vec<_> = paths.into_iter().collect();
    let (mut selected, mut unmatched) = (vec![false; paths.len()], Vec::new());
    for pattern in patterns {
        let alternatives = expand(pattern).map_err(TargetError::Malformed)?;
        let of = (alternatives.len() > 1).then_some(pattern);
        for alternative in alternatives {
            let mut any = false;
            for (selected, path) in selected.iter_mut().zip(&paths) {
                let own = matches(&alternative, path);
                any |= own;
                *selected |= own;
            }
            if !any {
                let near = near(&alternative, &paths);
                unmatched.push(Unmatched { pattern: alternative, of: of.cloned(), near });
            }
        }
    }
    if !unmatched.is_empty() {
        return Err(TargetError::NoMatch(unmatched));
    }
    Ok((0..paths.len()).filter(|&i| selected[i]).collect())
}

fn near(pattern: &str, paths: &[&str]) -> Near {
    numbers_there(pattern, paths).unwrap_or_else(|| Near::Names(near_names(pattern, paths)))
}

/// The numbers that stand in the paths where the pattern has its first one, if nothing but numbers keeps it from
/// matching.
fn numbers_there(pattern: &str, paths: &[&str]) -> Option<Near> {
    let is_number = |part: &&str| part.parse::<usize>().is_ok();
    let parts: Vec<_> = pattern.split('.').collect();
    let place = parts.iter().position(is_number)?;
    let any_number: Vec<_> = parts.iter().map(|part| if is_number(part) { "*" } else { part }).collect();
    let there = paths.iter().flat_map(|path| {
        let path: Vec<_> = path.split('.').collect();
        let alike = path.windows(parts.len()).filter(|part| are_alike(&any_number, part));
        alike.filter_map(|part| part[place].parse().ok()).collect::<Vec<usize>>()
    });
    let numbers: Vec<_> = there.collect();
    Some(Near::Numbers(*numbers.iter().min()?, *numbers.iter().max()?))
}

/// Up to three names that would be patterns, nearest first: runs of components as long as the pattern.
fn near_names(pattern: &str, paths: &[&str]) -> Vec<String> {
    let length = pattern.split('.').count();
    let mut names: Vec<String> = paths
        .iter()
        .flat_map(|path| {
            let parts: Vec<_> = path.split('.').collect();
            parts.windows(length).map(|part| part.join(".")).collect::<Vec<_>>()
        })
        .filter(|name| name.split('.').all(|part| part.parse::<usize>().is_err()))
        .collect();
    names.sort();
    names.dedup();
    names.sort_by_key(|name| strsim::levenshtein(name, pattern));
    names.truncate(3);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATHS: [&str; 5] = [
        "encoder.layer.0.attention.self.query",
        "encoder.layer.0.attention.output.dense",
        "encoder.layer.0.output.dense",
        "encoder.layer.1.attention.self.query",
        "encoder.layer.11.output.dense",
    ];

    fn selected(patterns: &[&str]) -> Result<Vec<usize>, TargetError> {
        select(&patterns.iter().map(ToString::to_string).collect::<Vec<_>>(), PATHS)
    }

    #[test]
    fn components_match_whole_and_next_to_each_other() {
        assert_eq!(selected(&["query"]).unwrap(), [0, 3]);
        assert_eq!(selected(&["output.dense"]).unwrap(), [1, 2, 4]);
        assert_eq!(selected(&["layer.*.output.dense"]).unwrap(), [2, 4]);
        assert_eq!(selected(&["layer.1", "query"]).unwrap(), [0, 3]);
        assert_eq!(selected(&["*"]).unwrap(), [0, 1, 2, 3, 4]);
        assert!(selected(&["que"]).is_err());
        assert!(selected(&["attention.query"]).is_err());
    }

    #[test]
    fn braces_stand_for_a_pattern_for_each_alternative() {
        assert_eq!(expand("layer.{0,4-6}.{query, value}_proj").unwrap().len(), 8);
        assert_eq!(expand("a{1-3}b").unwrap(), ["a1b", "a2b", "a3b"]);
        assert_eq!(expand("{self.query,output}.*").unwrap(), ["self.query.*", "output.*"]);
        // Only whole numbers make a range.
        assert_eq!(expand("{q-v,-1}").unwrap(), ["q-v", "-1"]);
        assert_eq!(expand("plain").unwrap(), ["plain"]);

        assert_eq!(selected(&["layer.{0-1}"]).unwrap(), [0, 1, 2, 3]);
        assert_eq!(selected(&["layer.{1,11}"]).unwrap(), [3, 4]);
        assert_eq!(selected(&["layer.{0,11}.output", "query"]).unwrap(), [0, 2, 3, 4]);
    }

    #[test]
    fn a_pattern_that_cannot_be_read_says_why() {
        let rule = |pattern: &str| selected(&[pattern]).unwrap_err().to_string();
        assert_eq!(rule("layer.{0,1"), "the pattern `layer.{0,1` has a `{` without its `}`");
        assert_eq!(rule("layer.0}"), "the pattern `layer.0}` has a `}` without its `{`");
        assert_eq!(rule("a}.{1,2}"), "the pattern `a}.{1,2}` has a `}` without its `{`");
        assert_eq!(rule("{}"), "the pattern `{}` has an empty alternative in its braces");
        assert_eq!(rule("{0,}"), "the pattern `{0,}` has an empty alternative in its braces");
        assert_eq!(
            rule("layer.{3-1}"),
            "the pattern `layer.{3-1}` has numbers that fall: write the smaller one first"
        );
        assert!(rule("{0-99999999999}").ends_with("has a range of numbers beyond any model's"));
        assert!(rule("{0-999}{a,b}").ends_with("multiply to more patterns than any model has blocks"));
        assert_eq!(
            rule("{a,{b,c}}"),
            "the pattern `{a,{b,c}}` has braces within braces: write a pattern for each"
        );
    }

    #[test]
    fn every_pattern_without_a_match_is_reported_with_near_names() {
        let error = selected(&["querry", "query", "outptu.dense"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no layer matches `querry`; near it: `query`, `dense`, `layer`; \
             no layer matches `outptu.dense`; near it: `output.dense`, `attention.self`, `self.query`"
        );
    }

    #[test]
    fn every_alternative_must_match() {
        let error = selected(&["layer.{10-12}", "{query,valeu}", "layer.7.output"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no layer matches `layer.10` of `layer.{10-12}`; the numbers there are 0 to 11; \
             no layer matches `layer.12` of `layer.{10-12}`; the numbers there are 0 to 11; \
             no layer matches `valeu` of `{query,valeu}`; near it: `layer`, `self`, `dense`; \
             no layer matches `layer.7.output`; the numbers there are 0 to 11"
        );
    }
}
