//! The grammar of the plays, as an automaton.
//!
//! A play has a title, players, acts, scenes, speeches and stage directions. A speech is made of couplets. What
//! ties a text together, and what a model has to find out, reaches far beyond a few letters, but never beyond 64:
//!
//! * each character speaks in images of one theme, in nouns, adjectives, verbs, rhymes and the sounds of coined words;
//! * the auxiliary decides the form of the verb, and the number of the subject decides the auxiliary;
//! * the second line of a couplet rhymes with the first;
//! * a speech ends by asking someone by name, and that one answers.
//!
//! Nothing is counted (acts and scenes have names, not numbers), and whatever must be remembered is said again in
//! time: so the last 64 characters always tell the state.

use super::automaton::{Automaton, Builder, StateId};
use super::words::{
    ACTS, Character, DIRECTIONS, HOOKS, HOURS, KINDS, MANNERS, PLACES, PROPS, THEMES, Theme, VOWELS,
};

const SINGULAR: &str = "the my thy our this any";
const PLURAL: &str = "these those all";
const PREPOSITIONS: &str = "in by on for from near with";
/// Auxiliaries by the form of the verb that they ask for: as it is, with -ed, with -ing; number tells the last two.
const MODALS: &str = "shall will must may can did";
const PERFECT: [&str; 2] = ["hath", "have"];
const PROGRESSIVE: [&str; 2] = ["is was", "are were"];

fn words(list: &str) -> impl Iterator<Item = &str> {
    list.split_whitespace()
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn listed(list: &str, form: impl Fn(&str) -> String) -> Vec<String> {
    words(list).map(form).collect()
}

/// Adds choices that together weigh about `weight`, all alike.
fn alike(b: &mut Builder, from: StateId, weight: u32, texts: &[String], next: StateId) {
    for text in texts {
        b.choice(from, text.as_str(), weight / texts.len() as u32, next);
    }
}

/// The automaton of all plays.
pub(super) fn automaton() -> Result<Automaton, String> {
    let mut b = Builder::default();
    let title = b.state();
    let characters: Vec<&Character> = THEMES.iter().flat_map(|theme| &theme.characters).collect();
    // Where each character's turn has come, and where speeches in each theme begin.
    let turns: Vec<StateId> = characters.iter().map(|_| b.state()).collect();
    let speeches: Vec<StateId> = THEMES.iter().map(|_| b.state()).collect();

    let entrance = scenery(&mut b, title, &characters);
    for (number, (character, &turn)) in characters.iter().zip(&turns).enumerate() {
        let tag = b.state();
        for from in [turn, tag] {
            b.choice(from, format!("{}.\n", character.name.to_uppercase()), 16, speeches[number / 2]);
        }
        for direction in DIRECTIONS.split('|') {
            b.choice(turn, format!("[{direction}.]\n\n"), 1, tag);
        }
        b.choice(turn, "\n", 1, entrance.scene_or_act);
        for prop in PROPS.split('|') {
            b.choice(entrance.enter, format!("{}, {prop}.]\n\n", character.name), 1, tag);
        }
    }
    for (number, theme) in THEMES.iter().enumerate() {
        let others: Vec<(&str, StateId)> = characters
            .iter()
            .zip(&turns)
            .enumerate()
            .filter(|(other, _)| other / 2 != number)
            .map(|(_, (character, &turn))| (character.name, turn))
            .collect();
        first_line(&mut b, theme, speeches[number], &others);
    }
    b.finish(title)
}

/// The states of what surrounds the speeches that speeches lead to.
struct Scenery {
    scene_or_act: StateId,
    enter: StateId,
}

/// Titles, players, acts and scenes, up to the name of the one who enters.
fn scenery(b: &mut Builder, title: StateId, characters: &[&Character]) -> Scenery {
    let (of, scene_or_act, act, place, hour, enter) =
        (b.state(), b.state(), b.state(), b.state(), b.state(), b.state());
    let mut player = b.state();

    for kind in words(KINDS) {
        b.choice(title, format!("THE {kind} OF THE "), 1, of);
    }
    for noun in THEMES.iter().flat_map(|theme| words(theme.nouns)) {
        b.choice(of, format!("{}\n\nTHE PLAYERS.\n", noun.to_uppercase()), 1, player);
    }
    for (number, Character { name, role }) in characters.iter().enumerate() {
        let last = number + 1 == characters.len();
        let next = if last { act } else { b.state() };
        for manner in MANNERS.split('|') {
            b.choice(player, format!("{name}, {role}, {manner}.\n{}", if last { "\n" } else { "" }), 1, next);
        }
        player = next;
    }

    b.choice(scene_or_act, "SCENE. ", 8, place);
    b.choice(scene_or_act, "THE END.\n\n\n", 1, title);
    for name in ACTS.split('|') {
        b.choice(act, format!("THE ACT OF {name}.\n\nSCENE. "), 1, place);
        b.choice(scene_or_act, format!("THE ACT OF {name}.\n\nSCENE. "), 1, place);
    }
    for text in PLACES.split('|') {
        b.choice(place, format!("{text}, "), 1, hour);
    }
    for text in HOURS.split('|') {
        b.choice(hour, format!("{text}.\n\n[Enter "), 1, enter);
    }
    Scenery { scene_or_act, enter }
}

#[derive(Clone, Copy, PartialEq)]
enum Number {
    Singular,
    Plural,
}

/// `The salt tide shall drown my keel by the stone,` and then a second line that rhymes; or a chant, which is all
/// coined words; or, but not as the first line of a speech, a line that asks one of `others` to speak.
fn first_line(b: &mut Builder, theme: &Theme, opening: StateId, others: &[(&str, StateId)]) {
    let again = b.state();
    let (one, many) = (b.state(), b.state());
    let (does, do_) = (b.state(), b.state());
    let called = b.state();
    let imperative = b.state();
    let object = b.state();
    let mut chant = b.state();

    for from in [opening, again] {
        alike(b, from, 160, &listed(SINGULAR, |word| capitalised(word) + " "), one);
        alike(b, from, 160, &listed(PLURAL, |word| capitalised(word) + " "), many);
        coined(b, theme, from, 420, " ", does, Letters::Capital);
        b.choice(from, "O ", 60, called);
        b.choice(from, "'", 600, chant);
    }
    for hook in HOOKS.split('/') {
        if let Some((before, mark)) = hook.split_once('|') {
            let asked = b.state();
            b.choice(again, before, 75, asked);
            for &(name, turn) in others {
                b.choice(asked, format!("{name}{mark}\n\n"), 1, turn);
            }
        }
    }
    for _ in 0..4 {
        let next = b.state();
        coined(b, theme, chant, 1000, " ", next, Letters::Small);
        chant = next;
    }
    coined(b, theme, chant, 1000, "!'\n", again, Letters::Small);

    noun(b, theme, one, Number::Singular, Adjective::Allowed, " ", does);
    noun(b, theme, many, Number::Plural, Adjective::Allowed, " ", do_);
    noun(b, theme, called, Number::Singular, Adjective::Allowed, ", ", imperative);
    for (from, number) in [(does, 0), (do_, 1)] {
        predicate(b, theme, from, PERFECT[number], PROGRESSIVE[number], object);
    }
    alike(b, imperative, 1000, &listed(theme.verbs, |word| format!("{word} ")), object);
    let end = object_and_place(b, theme, object, Adjective::Allowed);
    for (first, second) in theme.rhymes {
        let next = second_line(b, theme, second, again);
        for (mark, weight) in [(",\n", 6), (";\n", 2), (":\n", 1)] {
            b.choice(end, format!("{first}{mark}"), weight, next);
        }
    }
}

/// `And will devour the loaf near thy throne.` It has neither subject nor adjective, so that it is short: the first
/// line's rhyme lies less than 64 characters before its own.
fn second_line(b: &mut Builder, theme: &Theme, rhyme: &str, next: StateId) -> StateId {
    let start = b.state();
    let verb_phrase = b.state();
    let object = b.state();
    alike(b, start, 1000, &listed("And Yet But Or Nor", |word| format!("{word} ")), verb_phrase);
    predicate(b, theme, verb_phrase, "had", "", object);
    let end = object_and_place(b, theme, object, Adjective::None);
    for (mark, weight) in [(".\n", 5), ("!\n", 1), ("?\n", 1)] {
        b.choice(end, format!("{rhyme}{mark}"), weight, next);
    }
    start
}

/// `shall drown `, `hath drowned `, `is drowning `: the auxiliary decides the form of the verb.
fn predicate(
    b: &mut Builder,
    theme: &Theme,
    from: StateId,
    perfect: &str,
    progressive: &str,
    object: StateId,
) {
    for (auxiliaries, form) in [(MODALS, ""), (perfect, "ed"), (progressive, "ing")] {
        if !auxiliaries.is_empty() {
            let verb = b.state();
            alike(b, from, 1000, &listed(auxiliaries, |word| format!("{word} ")), verb);
            alike(b, verb, 1000, &listed(theme.verbs, |word| format!("{word}{form} ")), object);
        }
    }
}

/// `my keel by the `, with the state that a rhyme has to follow.
fn object_and_place(b: &mut Builder, theme: &Theme, object: StateId, adjective: Adjective) -> StateId {
    let (one, many, place, article, end) = (b.state(), b.state(), b.state(), b.state(), b.state());
    let prepositions = listed(PREPOSITIONS, |word| format!("{word} "));
    alike(b, object, 200, &listed(SINGULAR, |word| format!("{word} ")), one);
    alike(b, object, 200, &listed(PLURAL, |word| format!("{word} ")), many);
    coined(b, theme, object, 500, " ", place, Letters::Capital);
    alike(b, object, 100, &prepositions, article);
    noun(b, theme, one, Number::Singular, adjective, " ", place);
    noun(b, theme, many, Number::Plural, adjective, " ", place);
    alike(b, place, 1000, &prepositions, article);
    alike(b, article, 400, &listed(SINGULAR, |word| format!("{word} ")), end);
    coined(b, theme, article, 600, "'s ", end, Letters::Capital);
    end
}

#[derive(Clone, Copy, PartialEq)]
enum Adjective {
    Allowed,
    None,
}

/// A noun of the theme, or, if it is one, perhaps a coined name; perhaps with an adjective; then `mark`.
fn noun(
    b: &mut Builder,
    theme: &Theme,
    from: StateId,
    number: Number,
    adjective: Adjective,
    mark: &str,
    next: StateId,
) {
    let plural = if number == Number::Plural { "s" } else { "" };
    let nouns = listed(theme.nouns, |word| format!("{word}{plural}{mark}"));
    let mut states = vec![(from, 10_000)];
    if adjective == Adjective::Allowed {
        let described = b.state();
        states = vec![(from, 6_000), (described, 10_000)];
        alike(b, from, 4_000, &listed(theme.adjectives, |word| format!("{word} ")), described);
    }
    for (from, weight) in states {
        if number == Number::Singular {
            alike(b, from, weight / 10 * 6, &nouns, next);
            coined(b, theme, from, weight / 10 * 4, mark, next, Letters::Capital);
        } else {
            alike(b, from, weight, &nouns, next);
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Letters {
    Capital,
    Small,
}

/// A coined word of two or three syllables and an end, in the sounds of the theme, then `mark`.
fn coined(
    b: &mut Builder,
    theme: &Theme,
    from: StateId,
    weight: u32,
    mark: &str,
    next: StateId,
    letters: Letters,
) {
    let [consonants, ends] = theme.sounds;
    let syllables = |letters: Letters| -> Vec<String> {
        words(consonants)
            .flat_map(|c| words(VOWELS).map(move |v| format!("{c}{v}")))
            .map(|syllable| if letters == Letters::Capital { capitalised(&syllable) } else { syllable })
            .collect()
    };
    let (second, third, last) = (b.state(), b.state(), b.state());
    let ends: Vec<String> = listed(ends, |end| format!("{}{mark}", end.trim_matches('-')));
    alike(b, from, weight, &syllables(letters), second);
    alike(b, second, 600, &syllables(Letters::Small), third);
    alike(b, third, 300, &ends, next);
    alike(b, third, 900, &syllables(Letters::Small), last);
    alike(b, last, 600, &ends, next);
}
