//! Locates the assistant's turns in a rendered conversation: the spans of the text to train on.
//!
//! Three methods, in this order. First, the template's own `{% generation %}` marks. Second, prefixes: if the template
//! only appends, prefixes of the conversation are rendered with and without the generation prompt. Third, comparison:
//! the content of a turn is replaced by stand-ins and the renderings are compared, which also works for templates that
//! rewrite earlier turns, as reasoning templates do. Only text that provably belongs to a turn is trained on, never
//! another message.

use std::ops::Range;

use serde_json::Value;

use crate::text::{
    ChatMessage, ChatTemplate, Extent, Found, StandIns, TextError, Tokenizer, generation_spans, strings,
};

/// A span of a rendered conversation to train on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Its byte range in the text.
    pub bytes: Range<usize>,
    /// Marked by the template itself, so that every byte counts.
    pub marked: bool,
    /// The generation prompt precedes it, as in generation.
    pub prompted: bool,
}

/// The reason why no span of a conversation can be trained on.
#[derive(Debug)]
pub(super) enum LocateFault {
    /// The template fails.
    Text(TextError),
    /// The assistant message with this index is not in the text.
    LeftOut(usize),
    /// The assistant message with this index cannot be separated from the surrounding text.
    Unclear(usize),
}

impl From<TextError> for LocateFault {
    fn from(error: TextError) -> Self {
        Self::Text(error)
    }
}

/// A conversation with its template and tokenizer.
pub(super) struct Conversation<'a> {
    pub tokenizer: &'a Tokenizer,
    pub template: &'a ChatTemplate,
    pub messages: &'a [ChatMessage],
    /// Messages before this index are context.
    pub learn_from: usize,
    pub tools: Option<&'a Value>,
}

/// The location of a message in the text, or why it is not known.
enum Located {
    At(Range<usize>, Extent),
    LeftOut,
    Unclear,
}

impl Conversation<'_> {
    /// The whole conversation, rendered.
    pub fn text(&self) -> Result<String, TextError> {
        self.render(self.messages, false)
    }

    /// The indices of the messages to train on.
    pub fn learnt(&self) -> Vec<usize> {
        let learnt = |index: &usize| {
            let message = &self.messages[*index];
            message.role() == "assistant" && message.is_learnt()
        };
        (self.learn_from..self.messages.len()).filter(learnt).collect()
    }

    /// The spans of `text`, which is [`text`](Self::text), to train on, in order.
    pub fn spans(&self, text: &str) -> Result<Vec<Span>, LocateFault> {
        let learnt = self.learnt();
        if learnt.is_empty() {
            return Ok(Vec::new());
        }
        let marked = generation_spans(self.template, self.messages, self.tools, text)?;
        if let Some(marked) = marked.filter(|spans| !spans.is_empty()) {
            return self.without_context(text, marked);
        }
        let (mut spans, mut left_out) = (Vec::new(), None);
        for turn in learnt {
            let found = match self.appended(text, turn) {
                Some(span) => Ok(span),
                None => self.compared(text, turn),
            };
            match found {
                Ok(span) => spans.push(span),
                Err(LocateFault::LeftOut(turn)) => left_out = left_out.or(Some(turn)),
                Err(fault) => return Err(fault),
            }
        }
        match left_out {
            // Some templates omit old turns; the remaining ones are still trained on.
            Some(turn) if spans.is_empty() => Err(LocateFault::LeftOut(turn)),
            _ => Ok(spans),
        }
    }

    /// Whether other messages and tools give this text too.
    pub fn is_also(&self, text: &str, messages: &[ChatMessage], tools: Option<&Value>) -> bool {
        let other = self.template.render_with_tools(messages, tools, false);
        other.is_ok_and(|other| other == text)
    }

    fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String, TextError> {
        self.template
            .render_with_tools(messages, self.tools, add_generation_prompt)
    }

    /// The marked spans except those of assistant messages that are context only.
    fn without_context(&self, text: &str, mut marked: Vec<Range<usize>>) -> Result<Vec<Span>, LocateFault> {
        let learnt = self.learnt();
        let context = |turn: &usize| self.messages[*turn].role() == "assistant" && !learnt.contains(turn);
        for turn in (0..self.messages.len()).filter(context) {
            match self.locate(text, turn) {
                Located::At(said, _) => marked.retain(|span| {
                    let inside = said.is_empty() && (span.start..=span.end).contains(&said.start);
                    !inside && (said.end <= span.start || span.end <= said.start)
                }),
                Located::LeftOut => {}
                Located::Unclear => return Err(LocateFault::Unclear(turn)),
            }
        }
        let span = |bytes| Span {
            bytes,
            marked: true,
            prompted: true,
        };
        Ok(marked.into_iter().map(span).collect())
    }

    /// The span of a turn if the text extends the renderings of its prefixes: from the end of the generation prompt to
    /// the end of the rendering that ends with this turn.
    fn appended(&self, text: &str, turn: usize) -> Option<Span> {
        let before = self.render(&self.messages[..turn], true).ok()?;
        let end = if turn + 1 == self.messages.len() {
            text.len()
        } else {
            let with = self.render(&self.messages[..=turn], false).ok()?;
            text.starts_with(&with).then_some(with.len())?
        };
        let bytes = before.len()..end;
        let appends = text.starts_with(&before) && !bytes.is_empty();
        let own = appends
            && (self.writes_others_before(text, &bytes, turn) || self.appends_stand_ins(turn))
            && (self.shows_words(&text[bytes.clone()], turn) || !matches!(self.locate(text, turn), Located::LeftOut));
        own.then_some(Span {
            bytes,
            marked: false,
            prompted: true,
        })
    }

    /// Whether a text contains some of a message's words verbatim, more than could occur by chance, or the message has
    /// no words.
    fn shows_words(&self, text: &str, turn: usize) -> bool {
        const BY_CHANCE: usize = 10;
        let said = strings(&self.messages[turn]);
        let mut words = said
            .iter()
            .map(|said| said.trim())
            .filter(|said| !said.is_empty())
            .peekable();
        words.peek().is_none() || words.any(|said| said.len() > BY_CHANCE && text.contains(said))
    }

    /// Whether all preceding messages of others are found before the span, and not in it.
    fn writes_others_before(&self, text: &str, span: &Range<usize>, turn: usize) -> bool {
        let others = self.messages[..turn]
            .iter()
            .filter(|message| message.role() != "assistant");
        let before = |said: &str| text[..span.start].contains(said) && !text[span.clone()].contains(said);
        others
            .flat_map(strings)
            .all(|said| said.trim().is_empty() || before(said.trim()))
    }

    /// The same for the conversation with stand-ins, which is reliable even if the words occur twice.
    fn appends_stand_ins(&self, turn: usize) -> bool {
        let skeleton = self.skeleton(turn, Extent::BetweenTags);
        let (stand_ins, messages) = (&skeleton.stand_ins, &skeleton.messages);
        let render = |count, prompt| self.render(&messages[..count], prompt).ok();
        let (Some(text), Some(before), Some(with)) = (
            render(messages.len(), false),
            render(turn, true),
            render(turn + 1, false),
        ) else {
            return false;
        };
        let own = |found: &Found| found.message == turn;
        let span = |text: &str| stand_ins.find(text).iter().all(own);
        text.starts_with(&before) && text.starts_with(&with) && with.get(before.len()..).is_some_and(span)
    }

    /// The span of a turn by comparison: the text that changes with the turn's content, and the text around it that the
    /// template writes as part of the turn.
    fn compared(&self, text: &str, turn: usize) -> Result<Span, LocateFault> {
        let (said, extent) = match self.locate(text, turn) {
            Located::At(said, extent) => (said, extent),
            Located::LeftOut => return Err(LocateFault::LeftOut(turn)),
            Located::Unclear => return Err(LocateFault::Unclear(turn)),
        };
        let unknown = Frame {
            prompted: true,
            ..Frame::default()
        };
        let frame = self.frame(turn, extent).unwrap_or(unknown);
        let start = said.start
            - if text[..said.start].ends_with(&frame.lead) {
                frame.lead.len()
            } else {
                0
            };
        let end = said.end
            + if text[said.end..].starts_with(&frame.tail) {
                frame.tail.len()
            } else {
                0
            };
        Ok(Span {
            bytes: start..end,
            marked: false,
            prompted: frame.prompted,
        })
    }

    /// Locates a message's content in the text: all that changes when the content changes.
    fn locate(&self, text: &str, turn: usize) -> Located {
        let stand_ins = self.stand_ins(&[text]);
        let mut left_out = true;
        for extent in [Extent::BetweenTags, Extent::Strings, Extent::StringsAndNames] {
            let mut messages = self.messages.to_vec();
            messages[turn] = stand_ins.replace(&messages[turn], turn, extent);
            let Ok(other) = self.render(&messages, false) else {
                left_out = false;
                continue;
            };
            let found = stand_ins.find(&other);
            let (Some(first), Some(last)) = (found.first(), found.last()) else {
                left_out &= other == text;
                continue;
            };
            left_out = false;
            let (head, rest) = (&other[..first.bytes.start], &other[last.bytes.end..]);
            let once = (1..found.len()).all(|i| found[..i].iter().all(|earlier| earlier.piece != found[i].piece));
            let fits = head.len() + rest.len() <= text.len() && text.starts_with(head) && text.ends_with(rest);
            if once && fits {
                return Located::At(head.len()..text.len() - rest.len(), extent);
            }
        }
        if left_out { Located::LeftOut } else { Located::Unclear }
    }

    fn stand_ins(&self, more: &[&str]) -> StandIns {
        let said: Vec<String> = self.messages.iter().flat_map(strings).collect();
        let texts = said.iter().map(String::as_str).chain(more.iter().copied());
        StandIns::absent_from(&texts.chain([self.template.source()]).collect::<Vec<_>>())
    }

    /// The conversation with stand-ins for all content; `extent` is that of the turn.
    fn skeleton(&self, turn: usize, extent: Extent) -> Skeleton {
        let stand_ins = self.stand_ins(&[]);
        let replace = |(index, message): (usize, &ChatMessage)| {
            let extent = if index == turn { extent } else { Extent::BetweenTags };
            stand_ins.replace(message, index, extent)
        };
        let messages = self.messages.iter().enumerate().map(replace).collect();
        Skeleton { stand_ins, messages }
    }

    /// The text that the template writes right before and after the content of a turn as part of it. Computed with
    /// stand-ins, so that it contains nothing of other messages.
    fn frame(&self, turn: usize, extent: Extent) -> Option<Frame> {
        let skeleton = self.skeleton(turn, extent);
        let text = self.render(&skeleton.messages, false).ok()?;
        let found = skeleton.stand_ins.find(&text);
        let own = || {
            found
                .iter()
                .filter(|found| found.message == turn)
                .map(|found| &found.bytes)
        };
        let said = own().next()?.start..own().next_back()?.end;
        let others = || {
            found
                .iter()
                .filter(|found| found.message != turn)
                .map(|found| &found.bytes)
        };
        if others().any(|other| said.contains(&other.start)) {
            return None;
        }
        let free = others()
            .filter(|other| other.end <= said.start)
            .map(|other| other.end)
            .max()
            .unwrap_or(0)
            ..others()
                .filter(|other| other.start >= said.end)
                .map(|other| other.start)
                .min()
                .unwrap_or(text.len());
        let (lead, prompted) = self.lead(&skeleton, &text, turn, free.start..said.start);
        let tail = self.tail(&skeleton, turn, &text[said.end..free.end]);
        Some(Frame { lead, tail, prompted })
    }

    /// The text between the generation prompt and the content of a turn, and whether the whole prompt is present; `gap`
    /// is the text between the content of the preceding message and that of the turn.
    fn lead(&self, skeleton: &Skeleton, text: &str, turn: usize, gap: Range<usize>) -> (String, bool) {
        let render = |count: usize, prompt| self.render(&skeleton.messages[..count], prompt).unwrap_or_default();
        let (closed, open) = (render(turn, false), render(turn, true));
        let lead = |start: usize| text[start..gap.end].to_owned();
        if open.len() >= gap.start && open.len() <= gap.end && text.starts_with(&open) {
            return (lead(open.len()), true);
        }
        let prompt = open.strip_prefix(&closed).unwrap_or_default();
        if closed.len() >= gap.start && closed.len() <= gap.end && text.starts_with(&closed) {
            let shared = common_prefix(&text[closed.len()..gap.end], prompt);
            return (lead(closed.len() + shared), shared == prompt.len());
        }
        match text[gap.clone()].rfind(prompt).filter(|_| !prompt.is_empty()) {
            Some(at) => (lead(gap.start + at + prompt.len()), true),
            None => (String::new(), prompt.is_empty()),
        }
    }

    /// The text that the template writes after the content of a turn at the end of a conversation, as far as it is also
    /// in the whole conversation; `after` is the text there, up to the content of the next message.
    fn tail(&self, skeleton: &Skeleton, turn: usize, after: &str) -> String {
        let ended = self.render(&skeleton.messages[..=turn], false).unwrap_or_default();
        let found = skeleton.stand_ins.find(&ended);
        let said = found.iter().rfind(|found| found.message == turn);
        let ended = said.map(|found| &ended[found.bytes.end..]).unwrap_or_default();
        let shared = common_prefix(after, ended);
        if shared == ended.len() {
            return ended.to_owned();
        }
        // The following text may begin like a token of the end: only whole special tokens and white space are shared.
        let encoded = self.tokenizer.encode_with_offsets(after, false).unwrap_or_default();
        let blank = |start: usize, end: usize| after.get(start..end).is_some_and(|text| text.trim().is_empty());
        let ends = encoded.ids.iter().zip(&encoded.offsets);
        let whole = ends
            .filter(|(id, (start, end))| *end <= shared && (self.tokenizer.is_special(**id) || blank(*start, *end)))
            .map(|(_, (_, end))| *end)
            .max();
        after[..whole.unwrap_or(0)].to_owned()
    }
}

/// A conversation with stand-ins for all content.
struct Skeleton {
    stand_ins: StandIns,
    messages: Vec<ChatMessage>,
}

/// The parts of a turn besides its content.
#[derive(Default)]
struct Frame {
    lead: String,
    tail: String,
    /// Whether the generation prompt precedes the lead.
    prompted: bool,
}

/// The length in bytes of the common prefix, in whole characters.
fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.chars().zip(b.chars()).take_while(|(a, b)| a == b);
    same.map(|(a, _)| a.len_utf8()).sum()
}

#[cfg(test)]
#[path = "turns_tests.rs"]
mod tests;
