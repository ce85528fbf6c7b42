//! The stemmer that ROUGE compares words with: Porter's (1980) with the extensions of Python's `nltk`.
//!
//! No crate has those extensions, among them the irregular words and that `y` becomes `i` after a consonant only, and
//! scores change with them in the third digit.

/// Words that the rules would spoil.
const IRREGULAR: [(&str, &str); 16] = [
    ("sky", "sky"),
    ("skies", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
    ("succeed", "succeed"),
];

/// The stem of a word of the characters `a-z0-9`.
pub(crate) fn stem(word: &str) -> String {
    if let Some((_, stem)) = IRREGULAR.iter().find(|(irregular, _)| *irregular == word) {
        return (*stem).into();
    }
    if word.len() <= 2 {
        return word.into();
    }
    let steps = [plural, past, final_y, double_suffix, suffix, bare_suffix, final_e, double_l];
    steps.into_iter().fold(word.to_owned(), |word, step| step(&word))
}

/// For each letter whether it is a consonant: all but a, e, i, o, u, and y after a consonant.
fn consonants(word: &str) -> Vec<bool> {
    let mut flags: Vec<bool> = Vec::with_capacity(word.len());
    for byte in word.bytes() {
        flags.push(match byte {
            b'a' | b'e' | b'i' | b'o' | b'u' => false,
            b'y' => flags.last().is_none_or(|before| !before),
            _ => true,
        });
    }
    flags
}

/// Porter's m: how often a vowel is followed by a consonant.
fn measure(word: &str) -> usize {
    consonants(word).windows(2).filter(|pair| !pair[0] && pair[1]).count()
}

fn some(stem: &str) -> bool {
    measure(stem) > 0
}

fn several(stem: &str) -> bool {
    measure(stem) > 1
}

/// Porter's *o: consonant, vowel, consonant other than w, x, y at the end; or all of a word of vowel and consonant.
fn ends_short(word: &str) -> bool {
    match consonants(word)[..] {
        [false, true] => true,
        [.., true, false, true] => !word.ends_with(['w', 'x', 'y']),
        _ => false,
    }
}

/// A suffix, what takes its place, and what must hold for the stem before it.
type Rule = (&'static str, &'static str, fn(&str) -> bool);

/// The first rule whose suffix the word has decides, whether its condition holds or not.
fn apply(word: &str, rules: &[Rule]) -> String {
    for (suffix, replacement, condition) in rules {
        if let Some(stem) = word.strip_suffix(suffix) {
            return if condition(stem) { format!("{stem}{replacement}") } else { word.into() };
        }
    }
    word.into()
}

fn always(_: &str) -> bool {
    true
}

/// Step 1a.
fn plural(word: &str) -> String {
    if let (4, Some(stem)) = (word.len(), word.strip_suffix("ies")) {
        return format!("{stem}ie");
    }
    apply(word, &[("sses", "ss", always), ("ies", "i", always), ("ss", "ss", always), ("s", "", always)])
}

/// Step 1b.
fn past(word: &str) -> String {
    if let Some(stem) = word.strip_suffix("ied") {
        return format!("{stem}{}", if word.len() == 4 { "ie" } else { "i" });
    }
    if word.ends_with("eed") {
        return apply(word, &[("eed", "ee", some)]);
    }
    let with_vowel = |suffix| word.strip_suffix(suffix).filter(|stem| consonants(stem).contains(&false));
    let Some(stem) = with_vowel("ed").or_else(|| with_vowel("ing")) else { return word.into() };
    if ["at", "bl", "iz"].iter().any(|end| stem.ends_with(end)) {
        return format!("{stem}e");
    }
    let bytes = stem.as_bytes();
    if let [.., before, last] = bytes
        && before == last
        && consonants(stem).last() == Some(&true)
    {
        let stays = matches!(last, b'l' | b's' | b'z');
        return if stays { stem.into() } else { stem[..stem.len() - 1].into() };
    }
    if measure(stem) == 1 && ends_short(stem) { format!("{stem}e") } else { stem.into() }
}

/// Step 1c.
fn final_y(word: &str) -> String {
    apply(word, &[("y", "i", |stem| stem.len() > 1 && consonants(stem).last() == Some(&true))])
}

/// Step 2.
fn double_suffix(word: &str) -> String {
    if let Some(stem) = word.strip_suffix("alli").filter(|stem| some(stem)) {
        return double_suffix(&format!("{stem}al"));
    }
    // The l of `logi` counts for the stem, so that `geologi` has one.
    if word.ends_with("logi") {
        let stem = &word[..word.len() - 1];
        return if some(&word[..word.len() - 3]) { stem.into() } else { word.into() };
    }
    apply(
        word,
        &[
            ("ational", "ate", some),
            ("tional", "tion", some),
            ("enci", "ence", some),
            ("anci", "ance", some),
            ("izer", "ize", some),
            ("bli", "ble", some),
            ("alli", "al", some),
            ("entli", "ent", some),
            ("eli", "e", some),
            ("ousli", "ous", some),
            ("ization", "ize", some),
            ("ation", "ate", some),
            ("ator", "ate", some),
            ("alism", "al", some),
            ("iveness", "ive", some),
            ("fulness", "ful", some),
            ("ousness", "ous", some),
            ("aliti", "al", some),
            ("iviti", "ive", some),
            ("biliti", "ble", some),
            ("fulli", "ful", some),
        ],
    )
}

/// Step 3.
fn suffix(word: &str) -> String {
    apply(
        word,
        &[
            ("icate", "ic", some),
            ("ative", "", some),
            ("alize", "al", some),
            ("iciti", "ic", some),
            ("ical", "ic", some),
            ("ful", "", some),
            ("ness", "", some),
        ],
    )
}

/// Step 4.
fn bare_suffix(word: &str) -> String {
    apply(
        word,
        &[
            ("al", "", several),
            ("ance", "", several),
            ("ence", "", several),
            ("er", "", several),
            ("ic", "", several),
            ("able", "", several),
            ("ible", "", several),
            ("ant", "", several),
            ("ement", "", several),
            ("ment", "", several),
            ("ent", "", several),
            ("ion", "", |stem| several(stem) && stem.ends_with(['s', 't'])),
            ("ou", "", several),
            ("ism", "", several),
            ("ate", "", several),
            ("iti", "", several),
            ("ous", "", several),
            ("ive", "", several),
            ("ize", "", several),
        ],
    )
}

/// Step 5a.
fn final_e(word: &str) -> String {
    apply(word, &[("e", "", |stem| several(stem) || (some(stem) && !ends_short(stem)))])
}

/// Step 5b.
fn double_l(word: &str) -> String {
    if word.ends_with("ll") && several(&word[..word.len() - 1]) {
        word[..word.len() - 1].into()
    } else {
        word.into()
    }
}
