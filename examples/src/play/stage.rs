//! The grammar of the plays, as an automaton.
//!
//! A play has a title, players, acts, scenes, speeches and stage directions. A speech is made of couplets. What
//! ties a text together, and what a model has to find out, reaches far beyond a few letters, but never beyond 64:
//!
//! * each character speaks in images of one theme, in nouns, adjectives, verbs and the very sounds of names;
//! * the second line of a couplet rhymes with the first;
//! * a speech ends by asking someone by name, and that one answers.
//!
//! Nothing is counted (acts and scenes have names, not numbers), and whatever must be remembered is said again in
//! time: so the last 64 characters always tell the state.

use super::automaton::{Automaton, Builder, StateId};
use super::words::{
    ACTS, Character, DIRECTIONS, HOOKS, HOURS, KINDS, MANNERS, PLACES, PROPS, RHYMES, THEMES, Theme, VOWELS,
};

/// Of a thousand nouns, how many are coined names.
const COINED: u32 = 400;
/// Of a thousand nouns that may have an adjective, how many have one.
const DESCRIBED: u32 = 400;

const DETERMINERS: &str = "the my thy our this that her his your any";
const PREPOSITIONS: &str = "in by on at to off for from like near past with";
const AUXILIARIES: &str = "shall will must may can did would might dare should";

fn words(list: &str) -> impl Iterator<Item = &str> {
    list.split_whitespace()
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// `drown` to `drowns`.
fn third_person(verb: &str) -> String {
    match verb.strip_suffix('y') {
        Some(stem) if !stem.ends_with(['a', 'e', 'o', 'u']) => format!("{stem}ies"),
        _ if ["s", "sh", "ch", "x", "z"].iter().any(|end| verb.ends_with(end)) => format!("{verb}es"),
        _ => format!("{verb}s"),
    }
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
        for (manner, weight) in [(".", 14), (", aside.", 1), (", aloud.", 1)] {
            for from in [turn, tag] {
                b.choice(
                    from,
                    format!("{}{manner}\n", character.name.to_uppercase()),
                    weight,
                    speeches[number / 2],
                );
            }
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

/// `The salt tide shall drown my keel by the stone,` and then a second line that rhymes; or a chant, which is all
/// coined words; or, but not as the first line of a speech, a line that asks one of `others` to speak.
fn first_line(b: &mut Builder, theme: &Theme, opening: StateId, others: &[(&str, StateId)]) {
    let again = b.state();
    let subject = b.state();
    let called = b.state();
    let verb_phrase = b.state();
    let imperative = b.state();
    let object = b.state();
    let mut chant = b.state();

    let openers: Vec<String> = words(DETERMINERS).map(|word| capitalised(word) + " ").collect();
    for from in [opening, again] {
        alike(b, from, 360, &openers, subject);
        coined(b, theme, from, 380, " ", verb_phrase, Letters::Capital);
        b.choice(from, "O ", 60, called);
        b.choice(from, "'", 200, chant);
    }
    for hook in HOOKS.split('/') {
        if let Some((before, mark)) = hook.split_once('|') {
            let asked = b.state();
            b.choice(again, before, 28, asked);
            for &(name, turn) in others {
                b.choice(asked, format!("{name}{mark}\n\n"), 1, turn);
            }
        }
    }
    for _ in 0..3 {
        let next = b.state();
        coined(b, theme, chant, 1000, " ", next, Letters::Small);
        chant = next;
    }
    coined(b, theme, chant, 1000, "!'\n", again, Letters::Small);

    noun(b, theme, subject, Adjective::Allowed, " ", verb_phrase);
    noun(b, theme, called, Adjective::Allowed, ", ", imperative);
    predicate(b, theme, verb_phrase, imperative, object);
    let end = object_and_place(b, theme, object, Adjective::Allowed);
    for (first, second) in RHYMES {
        let next = second_line(b, theme, second, again);
        for word in words(first) {
            for (mark, weight) in [(",\n", 6), (";\n", 2), (":\n", 1)] {
                b.choice(end, format!("{word}{mark}"), weight, next);
            }
        }
    }
}

/// `And will devour the loaf near thy throne.` It has neither subject nor adjective, so that it is short: the first
/// line's rhyme lies less than 64 characters before its own.
fn second_line(b: &mut Builder, theme: &Theme, rhymes: &str, next: StateId) -> StateId {
    let start = b.state();
    let verb_phrase = b.state();
    let verb = b.state();
    let object = b.state();
    for word in ["And", "Yet", "But", "Or", "Nor"] {
        b.choice(start, format!("{word} "), 1, verb_phrase);
    }
    predicate(b, theme, verb_phrase, verb, object);
    let end = object_and_place(b, theme, object, Adjective::None);
    for word in words(rhymes) {
        for (mark, weight) in [(".\n", 5), ("!\n", 1), ("?\n", 1)] {
            b.choice(end, format!("{word}{mark}"), weight, next);
        }
    }
    start
}

/// `shall drown `
fn predicate(b: &mut Builder, theme: &Theme, verb_phrase: StateId, verb: StateId, object: StateId) {
    let auxiliaries: Vec<String> = words(AUXILIARIES).map(|word| format!("{word} ")).collect();
    let verbs: Vec<String> = words(theme.verbs).map(|word| format!("{word} ")).collect();
    let present: Vec<String> = words(theme.verbs).map(|word| third_person(word) + " ").collect();
    alike(b, verb_phrase, 400, &auxiliaries, verb);
    alike(b, verb_phrase, 600, &present, object);
    alike(b, verb, 1000, &verbs, object);
}

/// `my keel by the `, with the state that a rhyme has to follow.
fn object_and_place(b: &mut Builder, theme: &Theme, object: StateId, adjective: Adjective) -> StateId {
    let (phrase, place, article, end) = (b.state(), b.state(), b.state(), b.state());
    let determiners: Vec<String> = words(DETERMINERS).map(|word| format!("{word} ")).collect();
    let prepositions: Vec<String> = words(PREPOSITIONS).map(|word| format!("{word} ")).collect();
    alike(b, object, 500, &determiners, phrase);
    alike(b, object, 150, &prepositions, article);
    coined(b, theme, object, 500, " ", place, Letters::Capital);
    noun(b, theme, phrase, adjective, " ", place);
    alike(b, place, 1000, &prepositions, article);
    alike(b, article, 400, &determiners, end);
    coined(b, theme, article, 600, "'s ", end, Letters::Capital);
    end
}

#[derive(Clone, Copy, PartialEq)]
enum Adjective {
    Allowed,
    None,
}

/// A noun of the theme or a coined name, perhaps with an adjective, then `mark`.
fn noun(b: &mut Builder, theme: &Theme, from: StateId, adjective: Adjective, mark: &str, next: StateId) {
    let nouns: Vec<String> = words(theme.nouns).map(|word| format!("{word}{mark}")).collect();
    let adjectives: Vec<String> = words(theme.adjectives).map(|word| format!("{word} ")).collect();
    let scale = 100;
    let mut plain = 1000 * scale;
    if adjective == Adjective::Allowed {
        plain -= DESCRIBED * scale;
        let described = b.state();
        alike(b, from, DESCRIBED * scale, &adjectives, described);
        alike(b, described, (1000 - COINED) * scale, &nouns, next);
        coined(b, theme, described, COINED * scale, mark, next, Letters::Capital);
    }
    alike(b, from, plain / 1000 * (1000 - COINED), &nouns, next);
    coined(b, theme, from, plain / 1000 * COINED, mark, next, Letters::Capital);
}

#[derive(Clone, Copy, PartialEq)]
enum Letters {
    Capital,
    Small,
}

/// A coined word of two syllables and an end, in the sounds of the theme, then `mark`.
fn coined(
    b: &mut Builder,
    theme: &Theme,
    from: StateId,
    weight: u32,
    mark: &str,
    next: StateId,
    letters: Letters,
) {
    let [starts, middles, ends] = theme.sounds;
    let syllables = |consonants: &str, letters: Letters| -> Vec<String> {
        words(consonants)
            .flat_map(|c| words(VOWELS).map(move |v| format!("{c}{v}")))
            .map(|syllable| if letters == Letters::Capital { capitalised(&syllable) } else { syllable })
            .collect()
    };
    let (middle, end) = (b.state(), b.state());
    let ends: Vec<String> = words(ends).map(|end| format!("{}{mark}", end.trim_matches('-'))).collect();
    alike(b, from, weight, &syllables(starts, letters), middle);
    alike(b, middle, 1000, &syllables(middles, Letters::Small), end);
    alike(b, end, 1000, &ends, next);
}
