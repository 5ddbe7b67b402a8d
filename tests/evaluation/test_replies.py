"""How replies are read: a corpus of replies, each with what a careful reader takes from it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_metrics import PIECES

from mergekit_mm.evaluation.tasks import metrics, scoring
from mergekit_mm.evaluation.tasks.mathematics import is_bare
from mergekit_mm.evaluation.tasks.options import read_option
from mergekit_mm.evaluation.tasks.replies import answer_part, has_thoughts
from mergekit_mm.evaluation.tasks.stated_answers import stated_list, stated_number

# ------------------------------------------------------------------------------------ thoughts and invented questions

ANSWER_PART = [
    ("<think>\nI look\n</think>\n\n2011", "2011"),
    ("<think>a</think>b<think>c</think>2011", "2011"),
    ("the template wrote the first mark</think>2011", "2011"),
    ("<think>cut off in the middle", ""),
    ("2011 <think>really?", "2011"),
    ("2011<think>yes</think>", "2011"),
    ("<thinking>a</thinking>2011", "2011"),
    ("<reasoning>a</reasoning><answer>2011</answer>", "2011"),
    ("◁think▷a◁/think▷2011", "2011"),
    ("[THINK]a[/THINK]2011", "2011"),
    ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>2011", "2011"),
    ("<|channel>thought\na<channel|>2011", "2011"),
    ("<|begin_of_thought|>a<|end_of_thought|><|begin_of_solution|>2011<|end_of_solution|>", "2011"),
    ("<think>a</think><answer><|begin_of_box|>2011<|end_of_box|></answer>", "2011"),
    ("<think>a <answer>2011</answer>", "2011"),
    ("<SUMMARY>s</SUMMARY><REASONING>r</REASONING><CONCLUSION>2011</CONCLUSION>", "2011"),
    ("I write <answer></answer> around it: <answer>2011</answer>", "2011"),
    ("<answer>2011", "2011"),
    ("2011</answer>", "2011"),
    ("2011\n\nQuestion: next?\nAnswer: 7", "2011"),
    ("2011\nQ: next?\nA: 7", "2011"),
    ("2011\nUser: next?", "2011"),
    ("2011\nHuman: next?\nAssistant: 7", "2011"),
    ("2011\nuser\nnext?\nassistant\n7", "2011"),
    ("2011\n### Instruction:\nnext", "2011"),
    ("2011###Human: next", "2011"),
    ("2011\n###\n7", "2011"),
    ("2011<|im_end|>\n<|im_start|>user\nnext", "2011"),
    ("2011</s><s>7", "2011"),
    ("2011<end_of_turn>\n<start_of_turn>user", "2011"),
    ("2011 USER: next? ASSISTANT: 7", "2011"),
    ("2011. Question: next?", "2011."),
    ("2011\nProblem 2: next", "2011"),
    ("assistant\n2011", "2011"),
    ("<|im_start|>assistant\n2011", "2011"),
    ("ASSISTANT: 2011", "2011"),
    ("Question: which year?\nAnswer: 2011\nQuestion: next?", "Question: which year?\nAnswer: 2011"),
    ("Let me solve this problem: it is 2011", "Let me solve this problem: it is 2011"),
    ("I think <b>2011</b>", "I think <b>2011</b>"),
    ("### Answer\n2011", "### Answer\n2011"),
    ("a thinking user", "a thinking user"),
]


@pytest.mark.parametrize(("reply", "expected"), ANSWER_PART)
def test_the_part_that_answers(reply: str, expected: str) -> None:
    assert answer_part(reply).strip() == expected


@pytest.mark.parametrize(
    ("reply", "expected"), [("<think>a</think>b", True), ("a</think>b", True), ("<think>a", True), ("think", False)]
)
def test_thoughts_are_noticed(reply: str, expected: bool) -> None:
    assert has_thoughts(reply) == expected


# ------------------------------------------------------------------------------------------------------------ options

ANGLES = ["145°", "154 °", "35°", "60°"]
ANIMALS = ["a cat", "a dog", "a cat and a dog", "nothing"]
COLOURS = ["red", "blue", "green", "yellow"]
FRACTIONS = ["1/2", "1/3", "1/4", "2/3"]
HEAT = ["25°C", "30°C", "35°C", "40°C"]
LETTERS_ONLY = ["", "", "", ""]
MIXED = ["5 cm", "7 cm", "red", "dark red"]
NINE = ["0", "1", "2", "3", "4", "5", "6", "7", "8"]
NUMBERS = ["3", "5", "7", "9"]
PERCENTS = ["10%", "20%", "25%", "50%"]
RIGHT_ANGLES = ["30°", "45°", "60°", "90°"]
ROMAN = ["I", "II", "III", "IV"]
ROOTS = ["$2\\sqrt{3}$", "$3\\sqrt{2}$", "$\\sqrt{3}$", "$6$"]
SEGMENTS = ["AB", "BC", "CD", "AC"]
SHUFFLED = ["B", "A", "D", "C"]
SOUNDS = ["a dog", "a sine", "rain", "a horn"]
TENS = ["50", "60", "70", "80"]
TRUTHS = ["True", "False"]
TWO_FRACTIONS = ["1/2", "1/4"]
YES_NO = ["Yes", "No"]

READ_AS = [
    ("B", MIXED, "B"),
    ("(b).", MIXED, "B"),
    ("B) 7", MIXED, "B"),
    ("**C**", MIXED, "C"),
    ("The answer is B", MIXED, "B"),
    ("The correct option is: **C**, as shown", MIXED, "C"),
    ("\\boxed{D}", MIXED, "D"),
    ("\\boxed{\\text{D}}", MIXED, "D"),
    ("A and B are wrong. The answer is C because", MIXED, "C"),
    ("I choose B because A dog is there", MIXED, "B"),
    ("It is A or B", MIXED, None),
    ("答案是B", MIXED, "B"),
    ("A dark red one", MIXED, "D"),
    ("dark red", MIXED, "D"),
    ("I think 5 cm", MIXED, "A"),
    ("7cm.", MIXED, "B"),
    ("15 cm", MIXED, None),
    ("E", MIXED, None),
    ("", MIXED, None),
    ("none", MIXED, None),
    ("Not A, but B", MIXED, "B"),
    ("not A but B.", MIXED, "B"),
    ("A or B?", MIXED, None),
    ("The answer is A or B", MIXED, None),
    ("The answer is not A. It is B.", MIXED, "B"),
    ("The answer is not A nor B.", MIXED, None),
    ("The answer is B, not A.", MIXED, "B"),
    ("It's not B.", MIXED, None),
    ("neither A nor B", MIXED, None),
    ("(A) 5 cm (B) 7 cm (C) red (D) dark red\nAnswer: B", MIXED, "B"),
    ("(A) 5 cm\n(B) 7 cm\n(C) red\n(D) dark red\n\nB", MIXED, "B"),
    ("(A) 5 cm\n(B) 7 cm\n(C) red\n(D) dark red", MIXED, None),
    ("A. 5 cm, B. 7 cm, C. red, D. dark red. The dress is red.", MIXED, "C"),
    ("I cannot determine the answer from the image.", MIXED, None),
    ("Sorry, I can't help with A or B.", MIXED, None),
    ("option B", MIXED, "B"),
    ("Option b", MIXED, "B"),
    ("B.", MIXED, "B"),
    ("B: 7 cm", MIXED, "B"),
    ("B 7 cm", MIXED, "B"),
    ("I would choose (B)", MIXED, "B"),
    ("I wouldn't choose B.", MIXED, None),
    ("C is the correct answer because A is too long", MIXED, "C"),
    ("Option C is incorrect, so B.", MIXED, "B"),
    ("The answer should be B", MIXED, "B"),
    ("the answer is b", MIXED, "B"),
    ("the answer is a dog", SOUNDS, "A"),
    ("A dog is barking", SOUNDS, "A"),
    ("a dog", SOUNDS, "A"),
    ("It is a horn, not a dog", SOUNDS, "D"),
    ("The answer is B. The answer is not C.", MIXED, "B"),
    ("Therefore, (D)", MIXED, "D"),
    ("The answer is option D.", MIXED, "D"),
    ("Answer: B. 7 cm", MIXED, "B"),
    ("Answer: A\nB and C are wrong", MIXED, "A"),
    ("red or dark red", MIXED, None),
    ("The answer is red or dark red", MIXED, None),
    ("The answer is red.", MIXED, "C"),
    ("It is either A or C, but C fits better. So C.", MIXED, "C"),
    ("A and B", MIXED, None),
    ("A/B", MIXED, None),
    ("Both A and B are correct", MIXED, None),
    ("Let me listen.\nThe answer is B.", LETTERS_ONLY, "B"),
    ("Answer:\nB", LETTERS_ONLY, "B"),
    ("The video shows an oscillator.\nSo: B", LETTERS_ONLY, "B"),
    ("A. x\nB. y\nC. z\nD. w", LETTERS_ONLY, None),
    ("B is wrong, C is right", MIXED, "C"),
    ("In triangle ABC, angle B is 30, so C", MIXED, "C"),
    ("I", MIXED, None),
    ("I", NINE, "I"),
    ("Options: A. 5 cm B. 7 cm C. red D. dark red. Answer: C", MIXED, "C"),
    ("5 cm is too short, so 7 cm.", MIXED, "B"),
    ("(C) red", MIXED, "C"),
    ("The answer is (D) dark red.", MIXED, "D"),
    ("<think>A</think>B", MIXED, "B"),
    ("The correct choice is D, since A, B and C are too small.", MIXED, "D"),
    ("D because A, B and C are too small", MIXED, "D"),
    ("d", MIXED, "D"),
    ("B!", MIXED, "B"),
    ('"B"', MIXED, "B"),
    ("[B]", MIXED, "B"),
    ("{B}", MIXED, "B"),
    ("$B$", MIXED, "B"),
    ("B</s>", MIXED, "B"),
    ("B\n\nuser\nNext?", MIXED, "B"),
    ("B. The other options are wrong: A is short.", MIXED, "B"),
    ("No, it is not.", YES_NO, "B"),
    ("Yes", YES_NO, "A"),
    ("yes.", YES_NO, "A"),
    ("The answer is No", YES_NO, "B"),
    ("There is no doubt: yes", YES_NO, None),
    ("0.5", TWO_FRACTIONS, "A"),
    ("$\\frac{1}{2}$", TWO_FRACTIONS, "A"),
    ("Answer: 5", NUMBERS, "B"),
    ("5 or 7", NUMBERS, None),
    ("The answer is 5 or 7.", NUMBERS, None),
    ("3 + 2 = 5", NUMBERS, "B"),
    ("It is 25 C", HEAT, "A"),
    ("The temperature is 30 degrees", HEAT, "B"),
    ("B\n\nExplanation: Option C is wrong because 7 is too big.", NUMBERS, "B"),
    ("B\nA, C and D are wrong.", NUMBERS, "B"),
    ("The correct answer is: B\n\nC is incorrect because it ignores the base.", NUMBERS, "B"),
    ("B\n\nSolution: in triangle ABC with the right angle at C the hypotenuse is AB.", NUMBERS, "B"),
    ("The correct answer is (B). The other answer is wrong: (A)", NUMBERS, "B"),
    ("The answer is 5, since 3 + 2 = 5.", NUMBERS, "B"),
    ("Yes, there is no doubt.", YES_NO, "A"),
    ("It is 30°C", HEAT, "B"),
    ("145 degrees", ANGLES, "A"),
    ("$35^\\circ$", ANGLES, "C"),
    ("5.0", NUMBERS, "B"),
    ("The answer is B.\n\nQuestion: What is next?\nThe answer is C.", NUMBERS, "B"),
    ("<think>Maybe A or B? B looks right.</think>\n<answer>C</answer>", TENS, "C"),
    ("I don't know.", NINE, None),
    ("The correct answer is option (C): green.", COLOURS, "C"),
    ("Looking at the image, the car is blue, so the answer is B.", COLOURS, "B"),
    ("The car is blue.", COLOURS, "B"),
    ("I think it's blue, not red.", COLOURS, "B"),
    ("It's not red; it's green.", COLOURS, "C"),
    ("The answer is not red but green", COLOURS, "C"),
    ("blue (B)", COLOURS, "B"),
    ("Blue.", COLOURS, "B"),
    ("**Answer: B**", COLOURS, "B"),
    ("**B. blue**", COLOURS, "B"),
    ("### Answer\nB", COLOURS, "B"),
    ("## Solution\nThe car is blue.\n\n**Final Answer:** B", COLOURS, "B"),
    ("Answer: (b) blue", COLOURS, "B"),
    ("answer: b", COLOURS, "B"),
    ("ANSWER: B", COLOURS, "B"),
    ("The answer: B", COLOURS, "B"),
    ("My answer is B", COLOURS, "B"),
    ("My final answer is: B.", COLOURS, "B"),
    ("The right choice would be B", COLOURS, "B"),
    ("So the correct choice is (B) blue, because the car is not red.", COLOURS, "B"),
    ("B, because A is red's option.", COLOURS, "B"),
    ("Option B is correct.", COLOURS, "B"),
    ("Option A is incorrect. Option B is correct.", COLOURS, "B"),
    ("A is incorrect, C is incorrect, D is incorrect, therefore B.", COLOURS, "B"),
    ("We can rule out A, C and D.", COLOURS, None),
    ("Both B and C seem right.", COLOURS, None),
    ("B or C", COLOURS, None),
    ("B/C", COLOURS, None),
    ("Either B or C. I would say B.", COLOURS, "B"),
    ("A, B, C, D", COLOURS, None),
    ("A B C D", COLOURS, None),
    ("ABCD", COLOURS, None),
    ("Sorry, but I can't answer that.", COLOURS, None),
    ("As an AI language model, I cannot see images.", COLOURS, None),
    ("I am unable to view the image. Please provide more details. A) red B) blue", COLOURS, None),
    ("None of the above", COLOURS, None),
    ("It could be A.", COLOURS, "A"),
    ("A red car.", COLOURS, "A"),
    ("A blue car.", COLOURS, "B"),
    ("A car is blue.", COLOURS, "B"),
    ("A", COLOURS, "A"),
    ("a", COLOURS, "A"),
    ("a.", COLOURS, "A"),
    ("A: red", COLOURS, "A"),
    ("(A)", COLOURS, "A"),
    ("[A]", COLOURS, "A"),
    ("A)", COLOURS, "A"),
    ("Answer: A blue car", COLOURS, "B"),
    ("The answer is a blue car", COLOURS, "B"),
    ("The answer is A blue", COLOURS, "B"),
    ("a cat and a dog", ANIMALS, "C"),
    ("a cat", ANIMALS, "A"),
    ("There is a cat.", ANIMALS, "A"),
    ("There is a cat and a dog.", ANIMALS, "C"),
    ("There is a cat, and there is a dog.", ANIMALS, None),
    ("II", ROMAN, "B"),
    ("The answer is II.", ROMAN, "B"),
    ("Statement III is correct.", ROMAN, "C"),
    ("AB", SEGMENTS, "A"),
    ("Segment BC is the longest.", SEGMENTS, "B"),
    ("The answer is CD.", SEGMENTS, "C"),
    ("D", SEGMENTS, "D"),
    ("B", SHUFFLED, "B"),
    ("$\\frac{1}{2}$", FRACTIONS, "A"),
    ("0.25", FRACTIONS, "C"),
    ("1/3", FRACTIONS, "B"),
    ("The answer is 2/3.", FRACTIONS, "D"),
    ("True", TRUTHS, "A"),
    ("False.", TRUTHS, "B"),
    ("The statement is false.", TRUTHS, "B"),
    ("That is true, because it is not false.", TRUTHS, "A"),
    ("25%", PERCENTS, "C"),
    ("25 percent", PERCENTS, "C"),
    ("0.25", PERCENTS, "C"),
    ("25", PERCENTS, "C"),
    ("45 degrees", RIGHT_ANGLES, "B"),
    ("$45^{\\circ}$", RIGHT_ANGLES, "B"),
    ("\\angle ABC = 45°", RIGHT_ANGLES, "B"),
    ("The angle is 45°.", RIGHT_ANGLES, "B"),
    ("30 + 15 = 45 degrees", RIGHT_ANGLES, "B"),
    ("$2\\sqrt{3}$", ROOTS, "A"),
    ("2\\sqrt{3}", ROOTS, "A"),
    ("The answer is $3\\sqrt{2}$.", ROOTS, "B"),
    ("6", ROOTS, "D"),
    ("\\boxed{B}", NUMBERS, "B"),
    ("\\[\\boxed{\\text{(B)}}\\]", NUMBERS, "B"),
    ("\\boxed{5}", NUMBERS, "B"),
    ("The final answer is $\\boxed{B}$. I hope it is correct.", NUMBERS, "B"),
    ("\\boxed{A} or \\boxed{B}", NUMBERS, None),
    ("Therefore, the answer is:\n\nB", NUMBERS, "B"),
    ("Therefore, the answer is:\n\n**B. 5**\n", NUMBERS, "B"),
    ("Step 1: 3 is too small. Step 2: 7 is too big. So 5.", NUMBERS, "B"),
    ("3 is too small, 7 is too big, so it must be 5.", NUMBERS, "B"),
    ("There are 5 apples.", NUMBERS, "B"),
    ("There are 3 apples and 5 pears.", NUMBERS, None),
    ("five", NUMBERS, "B"),
    ("The answer is five.", NUMBERS, "B"),
    ("15", NUMBERS, None),
    ("5.5", NUMBERS, None),
    ("-5", NUMBERS, None),
    ("B.\nC.\nD.", NUMBERS, None),
    ("B\nB\nB", NUMBERS, "B"),
    ("B B B B", NUMBERS, "B"),
    ("The answer is B. The answer is B. The answer is B.", NUMBERS, "B"),
    ("Answer: B\nExplanation: A is wrong because 3 < 5. C is wrong because 7 > 5.", NUMBERS, "B"),
    (
        "Let's analyze each option:\nA. 3: no.\nB. 5: yes.\nC. 7: no.\nD. 9: no.\nTherefore the correct option is B.",
        NUMBERS,
        "B",
    ),
    ("A. 3\nB. 5\nC. 7\nD. 9\nThe answer is C", NUMBERS, "C"),
    ("(A) 3 (B) 5 (C) 7 (D) 9", NUMBERS, None),
    ("(A) 3 (B) 5 (C) 7 (D) 9 The answer is (D)", NUMBERS, "D"),
    ("The answer is (A) 3 (B) 5", NUMBERS, None),
    ("Question: how many? Choices: (A) 3 (B) 5 (C) 7 (D) 9 Answer: (B)", NUMBERS, "B"),
    ("I see B", NINE, "B"),
    ("I'd go with I.", NINE, "I"),
    ("USER: x\nB", NUMBERS, "B"),
    ("B\n\nUSER: next\nASSISTANT: C", NUMBERS, "B"),
    ("B\nassistant\nC", NUMBERS, "B"),
    ("B<|im_end|>", NUMBERS, "B"),
    ("The answer is B\n\n\nQ: next?\nA: C", NUMBERS, "B"),
    ("The answer cannot be A. It is B.", NUMBERS, "B"),
    ("The answer isn't A.", NUMBERS, None),
    ("It is definitely not A, and I doubt B, so C.", NUMBERS, "C"),
    ("The answer is B, C, or D", NUMBERS, None),
    ("The answer is neither A nor B, it is C", NUMBERS, "C"),
    ("The best answer is C. The other options A, B and D are wrong.", NUMBERS, "C"),
    ("C is my answer", NUMBERS, "C"),
    ("My choice: C", NUMBERS, "C"),
    ("C.", NUMBERS, "C"),
    ("C:", NUMBERS, "C"),
    ("C -", NUMBERS, "C"),
    ("C - 7", NUMBERS, "C"),
    ("c) 7", NUMBERS, "C"),
    ("<C>", NUMBERS, "C"),
    ("'C'", NUMBERS, "C"),
    ("“C”", NUMBERS, "C"),
    ("C,", NUMBERS, "C"),
    ("Ｃ", NUMBERS, "C"),
    ("选C", NUMBERS, "C"),
    ("答案:C", NUMBERS, "C"),
    ("答案为C。", NUMBERS, "C"),
    ("The person at point B walks to C. The answer is A.", NUMBERS, "A"),
    ("In circle O with radius OB, angle A is 5°.", NUMBERS, "B"),
    ("D is the midpoint of BC. Hence B.", NUMBERS, "B"),
    ("Hence, B", NUMBERS, "B"),
    ("=> B", NUMBERS, "B"),
    ("-> B", NUMBERS, "B"),
    ("Final Answer: The final answer is $B$", NUMBERS, "B"),
    ("The letter is B", NUMBERS, "B"),
    ("B is the answer", NUMBERS, "B"),
    ("I would answer B.", NUMBERS, "B"),
    ("The answer would be B if the angle were right. But it is not, so the answer is C.", NUMBERS, "C"),
    ("Correct option: D", NUMBERS, "D"),
    ("Correct answer: D", NUMBERS, "D"),
    ("Ans: D", NUMBERS, "D"),
    ("Ans. D", NUMBERS, "D"),
    ("Choice D", NUMBERS, "D"),
    ("Option: D", NUMBERS, "D"),
    ("The solution is D", NUMBERS, "D"),
    ("5 or 7?", NUMBERS, None),
    ("Between 5 and 7", NUMBERS, None),
    (" ", NUMBERS, None),
    ("???", NUMBERS, None),
    # options that are judged line by line, corrections, a marker within a word
    ("A: incorrect.\nB: correct.\nC: incorrect.\nD: incorrect.", NUMBERS, "B"),
    ("- **A. 3**: incorrect\n- **B. 5**: correct\n- **C. 7**: not correct\n- **D. 9**: wrong", NUMBERS, "B"),
    ("Option A: This is incorrect.\nOption B: This is correct.", NUMBERS, "B"),
    ("A: not correct\nB: correct\nC: correct", NUMBERS, None),
    ("A: correct.\nB: incorrect.\nThe answer is B", NUMBERS, "B"),
    ("The answer is A... wait, actually it's B.", NUMBERS, "B"),
    ("Answer: A. Sorry, it should be B.", NUMBERS, "B"),
    ("The answer is B. But wait, is A possible? A is wrong.", NUMBERS, "B"),
    ("The answer is B. Wait, it's not A.", NUMBERS, "B"),
    ("The answer to this question is (b).", NUMBERS, "B"),
    ("ans: b", NUMBERS, "B"),
    ("\n\n", NUMBERS, None),
]


@pytest.mark.parametrize(("reply", "choices", "letter"), READ_AS)
def test_the_option_that_a_careful_reader_takes(reply: str, choices: list[str], letter: str | None) -> None:
    assert read_option(reply, choices) == letter


# ----------------------------------------------------------------------------------------------------------- numbers

NUMBER = [
    ("The answer is 45 degrees since the sum of the angles of a triangle is 180.", 45),
    ("Answer: 12, because there are 3 rows of 4.", 12),
    ("24\n\nExplanation: 4 x 6", 24),
    ("Final answer: 24\n\nNote: the picture shows 5 other objects.", 24),
    ("Twenty-four", 24),
    ("minus 5", -5),
    ("negative five", -5),
    ("1/2", 0.5),
    ("5.6 \\times 10^{3}", 5600),
    ("The answer is 1/2", 0.5),
    ("\\boxed{\\frac{1}{2}}", 0.5),
    ("The answer is 12 or 24", None),
    ("I see 3 cats and 4 dogs", None),
    ("5 cm", 5),
    ("$5", 5),
    ("5%", 5),
    ("5 million", 5),
    ("12,000", 12000),
    ("12 000", 12000),
    ("1 1/2", 1.5),
    ("1½", 1.5),
    ("½", 0.5),
    ("twelve", 12),
    ("between 3 and 5", None),
    ("3-5", None),
    ("3 - 5", None),
    ("3 + 4 = 7", 7),
    ("There are 3 red and 4 blue, 7 in total.", 7),
    ("−5", -5),
    ("-5", -5),
    ("–5", -5),
    ("x = 7", 7),
    ("The area is 78.5 cm^2.", 78.5),
    ("The radius is 5. The area is 78.5.", 78.5),
    ("1. The radius is 5.\n2. The area is 78.5.", 78.5),
    ("two thousand and seven", 2007),
    ("one hundred and twenty-three", 123),
    ("a dozen", 12),
    ("three quarters", 0.75),
    ("one and a half", 1.5),
    ("2.5e3", 2500),
    ("10³", None),
    ("5×10⁻³", 0.005),
    ("The answer is approximately 3.14", 3.14),
    ("There are 24 apples. Note: 5 oranges too.", 24),
    ("I cannot tell; there are 3 of them.", None),
    ("The difference between 15 and 3 is 12.", 12),
    ("Tom has 3 apples, so 4 are left", 4),
    ("three and four", None),
    ("3 or 4", None),
    ("It's 5.", 5),
    ("5'000", 5000),
    ("€5", 5),
    ("The answer is not 5 but 6.", 6),
    ("The answer is more than 5", None),
    ("x > 5", None),
    ("5:30", None),
    ("3/4 of them", 0.75),
    ("The man on the left is the one who is 5 years older than the other", 5),
    ("2x", None),
    ("2\\pi", None),
    ("The answer is 24 (4 x 6).", 24),
    ("In 2007, the value was 45.", 45),
    ("12 cats", 12),
    ("3 cats are left and 4 right, so 7.", 7),
    ("18 because 3 x 6", 18),
    ("Step 1: add 3 and 4 to get 7.\nStep 2: multiply 7 by 2, giving 14.", 14),
    ("0", 0),
    ("zero", 0),
    ("**24**", 24),
    ("The answer should be 24", 24),
    ("The answer would be 24.", 24),
    ("####24", 24),
    ("5 to 7", None),
    ("The value is 5 ± 1", None),
    ("The number 5", 5),
    ("$\\frac{3}{4}$", 0.75),
    ("-\\frac{3}{4}", -0.75),
    ("1\\frac{1}{2}", 1.5),
    ("12.", 12),
    ("7 cm.", 7),
    ("Figure 2 shows 7", 7),
    ("24!", 24),
    ("twenty four", 24),
    ("2 and a half", 2.5),
    ("$12.50$", 12.5),
    ("5 °C", 5),
    ("45°", 45),
    ("2D", None),
    ("The area is 24 square units.", 24),
    ("24 square units", 24),
    ("It took 24 minutes.", 24),
    ("24 minutes", 24),
    ("about 24", 24),
    ("≈24", 24),
    ("~24", 24),
    ("24.0", 24),
    ("24,5", None),
    ("1,234.5", 1234.5),
    ("1.234e3", 1234),
    ("$1,234.50", 1234.5),
    ("USD 5", 5),
    ("5 USD", 5),
    ("5€", 5),
    ("£5", 5),
    ("50 %", 50),
    ("fifty percent", 50),
    ("5 thousand", 5),
    ("5k", 5),
    ("2.5 million people", 2.5),
    ("three million", 3000000.0),
    ("12 345 678", 12345678),
    ("1 000", 1000),
    ("12\xa0000", 12000),
    ("12\u202f000", 12000),
    ("-3/4", -0.75),
    ("−3.5", -3.5),
    ("(5)", 5),
    ("[5]", 5),
    ("{5}", 5),
    ('"5"', 5),
    ("5.", 5),
    ("5!", 5),
    ("= 5", 5),
    ("x=5", 5),
    ("y = -5", -5),
    ("\\(x = 5\\)", 5),
    ("\\[5\\]", 5),
    ("$$5$$", 5),
    ("$x = 5$", 5),
    ("\\boxed{5\\text{ cm}}", 5),
    ("\\boxed{x=5}", 5),
    ("\\boxed{5^\\circ}", 5),
    ("\\boxed{\\$5}", 5),
    ("\\boxed{-5}", -5),
    ("\\boxed{12{,}000}", 12000),
    ("\\boxed{\\dfrac{-1}{2}}", -0.5),
    ("The answer is between 3 and 5", None),
    ("3 to 5", None),
    ("from 3 to 5", None),
    ("3–5", None),
    ("3..5", None),
    ("either 3 or 5", None),
    ("at least 5", None),
    ("more than 5", None),
    ("5+", None),
    ("The answer is: 24. There are 3 groups of 8.", 24),
    ("Answer: 24\nReason: 3 x 8", 24),
    ("Answer = 24", 24),
    ("answer 24", 24),
    ("Total: 24", 24),
    ("Total = 3 + 21 = 24", 24),
    ("3 × 8 = 24", 24),
    ("3*8=24", 24),
    ("24 = 3 × 8", None),
    ("So there are 24 apples.", 24),
    ("Therefore, there are 24.", 24),
    ("Adding 10 and 14 gives 24.", 24),
    ("10 + 14 equals 24", 24),
    ("The sum of 10 and 14 is 24.", 24),
    ("10 minus 4 is 6", 6),
    ("Subtract 4 from 10 to get 6", 6),
    ("We have 10 - 4 = 6 left", 6),
    ("There are 5 women.", 5),
    ("There are no women", None),
    ("No number", None),
    ("none", None),
    ("I can't tell.", None),
    ("Not enough information; maybe 5.", None),
    ("The answer is 5 because 3 + 2 = 5", 5),
    ("The answer is 3 + 2 = 5", 5),
    ("The answer is 3+2", None),
    ("The answer is 5 cm, not 7 cm", 5),
    ("The answer is not 7 cm, it is 5 cm", 5),
    ("Not 7, but 5", 5),
    ("The final answer is 5. The answer is not 7.", 5),
    ("5\n6", None),
    ("5\n\n5", 5),
    ("5 5 5", None),
    ("5, 6", None),
    ("5; 6", None),
    ("twenty-one", 21),
    ("twenty one", 21),
    ("Twenty-One", 21),
    ("one hundred", 100),
    ("a hundred and five", 105),
    ("one thousand two hundred", 1200),
    ("ninety-nine", 99),
    ("negative two", -2),
    ("minus one half", -0.5),
    ("half", 0.5),
    ("one third", 0.3333333333333333),
    ("two thirds", 0.6666666666666666),
    ("three and a half", 3.5),
    ("2 1/2", 2.5),
    ("2½", 2.5),
    ("¾", 0.75),
    ("two point five", 2.5),
    ("The answer is four.", 4),
    ("four", 4),
    ("Four dogs.", 4),
    ("The first one is 5", 5),
    ("5 years old", 5),
    ("The age gap is 5 years.", 5),
    ("He is 5.", 5),
    ("In 1990 and 1995 respectively", None),
    ("1990", 1990),
    ("It was in 1990.", 1990),
    ("July 4, 1990", None),
    ("12/25/1990", None),
    ("3:4", None),
    ("5x", None),
    ("2π", None),
    ("√2", None),
    ("5²", None),
    ("10^5", None),
    ("3 x 10^8", 300000000.0),
    ("3×10⁸", 300000000.0),
    ("6.02e23", 6.02e23),
    ("Step 1. Count 3. Step 2. Count 4. Final: 7", 7),
    ("**Step 1:** 3\n**Step 2:** 4\n\n**Total:** 7", 7),
    ("- 3 red\n- 4 blue\n= 7", 7),
    ("5 apples\n\nThe image also shows 3 pears.", 5),
    ("The answer is 5\nThe answer is 6", 6),
    ("Q: x? A: 5", 5),
    ("A: 5", 5),
    ("A5", None),
    ("No. 5", 5),
    ("#5", 5),
    ("5th", 5),
    ("the 5th", 5),
    ("5-sided", 5),
    ("5-year-old", 5),
    # of Chinese, Japanese and Korean, which are written without blanks
    ("一共有5个苹果。", 5),
    ("图中有3个红色和2个蓝色，所以总共有5个。", 5),
    ("答えは12です。", 12),
    ("총 12개", 12),
    ("é5", None),
    # corrections, conditions, names of numbers
    ("The answer is 5. Wait, it's 6.", 6),
    ("The answer is 5. Actually, that is 5 apples.", 5),
    ("The answer is 5. Wait, it's not 6.", 5),
    ("f(x) = 5 at x = 2", 5),
    ("When x = 2, y = 5.", 5),
    ("The lines meet at x = 5.", 5),
    ("x = 5, y = 6", None),
    ("x = 2 or x = 3", None),
    ("Red: 3, Blue: 4", None),
    ("Red: 3, blue: 4, total: 7", 7),
    ("a = 3, b = 4, so c = 5", 5),
    ("1. The value is 3.5", 3.5),
    ("1.", 1),
    ("Sales in 2010: 45", 45),
    ("The bar for 2010 is at 45.", 45),
    ("The tallest bar has a value of 45, in 2010.", 45),
    ("The answer to this question is 5", 5),
]


@pytest.mark.parametrize(("reply", "number"), NUMBER)
def test_the_number_that_a_careful_reader_takes(reply: str, number: float | None) -> None:
    found = stated_number(reply)
    assert (None if found is None else found.value) == (None if number is None else pytest.approx(number))


@pytest.mark.parametrize(
    ("reply", "reference", "expected"),
    [
        ("5%", "5", 1),
        ("5%", "0.05", 1),
        ("5%", "500", 0),
        ("5 million", "5", 1),
        ("5 million", "5000000", 1),
        ("$5 billion", "5000000000", 1),
        ("5k", "5000", 1),
        ("5 km", "5000", 0),
    ],
)
def test_a_percent_sign_and_a_million_may_be_part_of_the_question(reply: str, reference: str, expected: float) -> None:
    assert metrics.mathvista_score(reply, reference, answer_type="float", precision=2) == expected


LIST = [
    ("[1, 2]", ["1", "2"]),
    ("1, 2", ["1", "2"]),
    ("1 and 2", ["1", "2"]),
    ("1, 2, and 3", ["1", "2", "3"]),
    ("(1, 2)", ["1", "2"]),
    ("{1, 2}", ["1", "2"]),
    ("\\{1, 2\\}", ["1", "2"]),
    ("The answer is [1, 2].", ["1", "2"]),
    ("The years are 2007 and 2008.", ["2007", "2008"]),
    ("The answer is [1, 2] because [3, 4] is wrong.", ["1", "2"]),
    ("\\boxed{1, 2}", ["1", "2"]),
    ("\\boxed{1} and \\boxed{2}", ["1", "2"]),
    ("\\boxed{[1,2]}", ["1", "2"]),
    ("1; 2", ["1", "2"]),
    ("1\n2", ["1", "2"]),
    ("[1.5, -2]", ["1.5", "-2"]),
    ("['red', 'blue']", ["red", "blue"]),
    ("```python\n[1, 2]\n```", ["1", "2"]),
    ("none", None),
    ("1 or 2", None),
    ("2007-2008", None),
    ("from 2007 to 2008", None),
    ("2007, 2008", ["2007", "2008"]),
    ("I don't know", None),
    ("In 2007 and in 2008", ["2007", "2008"]),
    ("2007, and then 2008", ["2007", "2008"]),
    ("2007 as well as 2008", ["2007", "2008"]),
    ("the year 2007 and the year 2008", ["2007", "2008"]),
    ("2007年和2008年", ["2007", "2008"]),
    ("2007、2008", ["2007", "2008"]),
    ("- 2007\n- 2008", ["2007", "2008"]),
    ("1. 2007\n2. 2008", ["2007", "2008"]),
    ("- 2007 (highest)\n- 2008 (lowest)", ["2007", "2008"]),
    ("[2007 2008]", ["2007", "2008"]),
    ("[2007; 2008]", ["2007", "2008"]),
    ("x = 2, y = 3", ["2", "3"]),
    ("x = 2 or x = 3", None),
]


@pytest.mark.parametrize(("reply", "elements"), LIST)
def test_the_list_that_a_careful_reader_takes(reply: str, elements: list[str] | None) -> None:
    assert stated_list(reply) == elements


OPEN = [
    ("12", "12", 1),
    ("The answer is 12.", "12", 1),
    ("The answer is 12 because 3*4=12", "12", 1),
    ("12 because 3*4", "12", 1),
    ("\\boxed{12}", "12", 1),
    ("$12$", "12", 1),
    ("It is Sunday.", "Sunday", 1),
    ("The answer is Sunday.", "Sunday", 1),
    ("Sunday, because it is after Saturday", "Sunday", 1),
    ("On Sunday", "Sunday", 1),
    ("The day is not Sunday", "Sunday", 0),
    ("Saturday or Sunday", "Sunday", 0),
    ("3:2", "3:2", 1),
    ("The ratio is 3:2.", "3:2", 1),
    ("(2, 3)", "(2,3)", 1),
    ("The point is (2, 3).", "(2,3)", 1),
    ("$\\frac{3}{4}$ of them", "\\frac{3}{4}", 1),
    ("3/4", "\\frac{3}{4}", 1),
    ("0.75", "\\frac{3}{4}", 1),
    ("three quarters", "\\frac{3}{4}", 1),
    ("The answer is $2\\sqrt{3}$ because $\\sqrt{12} = 2\\sqrt{3}$.", "2\\sqrt{3}", 1),
    ("So $x = 2\\sqrt{3}$.", "2\\sqrt{3}", 1),
    ("$x = 2\\sqrt{3}$", "2\\sqrt{3}", 1),
    ("2\\pi", "2\\pi", 1),
    ("The area is $4\\pi$ cm$^2$.", "4\\pi", 1),
    ("4π", "4\\pi", 1),
    ("45°", "45", 1),
    ("45 degrees", "45^{\\circ}", 1),
    ("45", "45^\\circ", 1),
    ("16 or 24", "24", 0),
    ("between 16 and 24", "24", 0),
    ("24 cm", "24", 1),
    ("24 cm^2", "24", 1),
    ("$24 \\text{ cm}^2$", "24", 1),
    ("25%", "25\\%", 1),
    ("25%", "25", 1),
    ("-5", "5", 0),
    ("5", "-5", 0),
    ("$-5$", "-5", 1),
    ("minus five", "-5", 1),
    ("1,000", "1000", 1),
    ("1 000", "1000", 1),
    ("yes", "Yes", 1),
    ("A", "A", 1),
    ("The triangle ABC", "ABC", 0),
    ("x^2+1", "x^2+1", 1),
    ("$x^2 + 1$", "x^2+1", 1),
    ("1+x^2", "x^2+1", 1),
    ("100", "99", 0),
    ("I don't know", "7", 0),
    ("7 is not the answer", "7", 0),
    ("The answer is 7.\n\nQuestion: 3+4?\nAnswer: 8", "7", 1),
    ("<think>8</think>7", "7", 1),
    ("7</s>", "7", 1),
    ("7\n\n7", "7", 1),
    ("Step 1: 3+4=7\nStep 2: 7*2=14\nAnswer: 14", "14", 1),
    ("Answer: 14 (7*2)", "14", 1),
    ("**14**", "14", 1),
    ("\\(14\\)", "14", 1),
    ("\\[ 14 \\]", "14", 1),
    ("14.0", "14", 1),
    ("1.4 × 10^1", "14", 1),
    ("fourteen", "14", 1),
    ("Therefore, the total number of cubes is 3 × 4 + 2 = 14.", "14", 1),
    ("The number of ways is C(4,2) = 6", "6", 1),
    ("5 \\times 10^3", "5000", 1),
]


@pytest.mark.parametrize(("reply", "reference", "expected"), OPEN)
def test_open_questions(reply: str, reference: str, expected: float) -> None:
    if "\\" in reference or "x" in reference:
        pytest.importorskip("math_verify")
    assert metrics.mathvision_score(reply, reference) == expected


@pytest.mark.parametrize(
    "reply", ["blue", "Blue.", "The answer is blue.", "It is blue.", "blue, because it is the sky"]
)
def test_an_answer_in_words(reply: str) -> None:
    assert metrics.mathvista_score(reply, "blue", answer_type="text") == 1
    assert metrics.mathvista_score(reply, "red", answer_type="text") == 0


# ------------------------------------------------------------------------------------------------------- short answers


@pytest.mark.parametrize(
    "reply",
    [
        "2011",
        "\n\n2011\nThe answer is 7",
        "Answer: 2011",
        "Answer:\n2011",
        "**Answer:** 2011",
        "The answer: 2011",
        "A: 2011",
        "**2011**",
        "\\boxed{2011}",
        "$\\boxed{\\text{2011}}$",
        "Q: When?\nA: 2011",
        "Question: When?\n\nAnswer: 2011",
        "<think>a</think>\n2011",
        "2011<|im_end|>",
        "2011 Question: next?",
    ],
)
def test_the_short_answer_in_a_reply(reply: str) -> None:
    assert scoring.vqa({"answers": ["2011"] * 10}, [reply])["score"] == 1
    assert scoring.chartqa({"answer": "2011", "type": "human_test"}, [reply])["score"] == 1
    assert scoring.short({"answer": "2011"}, [reply])["exact_match_strict"] == 1
    assert scoring.music_avqa({"answer": "2011", "question_type": None}, [reply])["score"] == 1


def test_a_sentence_is_no_short_answer() -> None:
    """As in the peers' scorers of these data sets, which compare the whole reply."""
    assert scoring.short({"answer": "2011"}, ["The answer is 2011."])["score"] == 0


# ---------------------------------------------------------------------------------------------------------- properties

replies = st.one_of(
    st.text(), st.lists(st.sampled_from([*PIECES, *(row[0] for row in ANSWER_PART)]), max_size=4).map(" ".join)
)


@settings(deadline=None)
@given(replies)
def test_any_text_can_be_read(reply: str) -> None:
    part = answer_part(reply)
    assert answer_part(part) == part
    assert read_option(reply, MIXED) in (None, *"ABCD")
    assert read_option(part, NUMBERS) == read_option(reply, NUMBERS)
    assert stated_number(part) == stated_number(reply)
    assert stated_list(part) == stated_list(reply)
    assert is_bare(reply) in (True, False)


@given(
    st.sampled_from("ABCD"),
    st.sampled_from(["{}", "({})", "{}.", "**{}**", "Answer: {}", "\\boxed{{{}}}", "option {}"]),
)
def test_a_letter_is_itself_in_every_dress(letter: str, dress: str) -> None:
    for choices in (MIXED, NUMBERS, COLOURS, ANIMALS, SEGMENTS, LETTERS_ONLY):
        assert read_option(dress.format(letter), choices) == letter


@pytest.mark.parametrize(
    "choices", [MIXED, NUMBERS, ANGLES, YES_NO, HEAT, SOUNDS, ANIMALS, COLOURS, FRACTIONS, ROOTS, PERCENTS]
)
def test_an_option_s_text_is_itself(choices: list[str]) -> None:
    for letter, text in zip("ABCD", choices, strict=False):
        for dress in ("{}", "{}.", "The answer is {}.", f"{letter}. {{}}", f"The answer is ({letter}) {{}}"):
            assert read_option(dress.format(text), choices) == letter


@given(
    st.integers(-(10**7), 10**7),
    st.sampled_from(
        ["{}", "{:,}", "${}$", "{} cm", "The answer is {}.", "{}\n\nBecause 3 x 4 = 12.", "So it is {:,}."]
    ),
)
def test_an_integer_is_itself_in_every_dress(value: int, dress: str) -> None:
    assert metrics.mathvista_score(dress.format(value), str(value), answer_type="integer") == 1
    assert metrics.mathvision_score(dress.format(value), str(value)) == 1


@pytest.mark.parametrize(
    ("reply", "fields", "expected"),
    [
        ("5", {}, True),
        (" 5. ", {}, True),
        ("1,000", {}, True),
        ("**-5**", {}, True),
        ("five", {}, True),
        ("5 cm", {}, False),
        ("5%", {}, False),
        ("The answer is 5", {}, False),
        ("5 6", {}, False),
        ("", {}, False),
        ("B", {"choices": NUMBERS}, True),
        ("(B).", {"choices": NUMBERS}, True),
        ("5", {"choices": NUMBERS}, True),
        ("B, because", {"choices": NUMBERS}, False),
        ("E", {"choices": NUMBERS}, False),
    ],
)
def test_what_a_judge_need_not_see(reply: str, fields: dict[str, Any], expected: bool) -> None:
    assert is_bare(reply, **fields) == expected


@pytest.mark.parametrize(
    "piece", ["the answer is ", "A, B, ", "not A and ", "1 ", "(1, 2), ", "\\boxed{", "</think>", "-", "_", "\n", "###"]
)
def test_a_reply_that_loops_is_read_soon(piece: str) -> None:
    """A pattern that goes back over the text for each of its letters would take minutes."""
    reply = piece * (8000 // len(piece))
    assert read_option(reply, MIXED) is None
    assert metrics.mathvista_score(reply + "\nThe answer is 7.", "7", answer_type="integer") == 1
    assert metrics.box_iou_score(reply, [0, 0, 9, 9], image_width=9, image_height=9) == 0
