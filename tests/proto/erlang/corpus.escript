#!/usr/bin/env escript
%% Writes the corpus: one line `Kind<TAB>Base64<TAB>Printed` for each external term, on standard output.
%%
%% Base64 is what term_to_binary/2 made of the term, Printed is ~w of the same term: an independent statement
%% of what it is. Atoms have two encodings and releases differ in which one is the default, floats had another
%% one long ago; so the minor version is always given, and each term is written once for each version that
%% encodes it differently. Everything is deterministic: map entries are sorted, random numbers are our own
%% (not those of a release's rand), and no pid or reference belongs to this node.
%% Kinds that start with "unsupported_" are terms that the codec refuses by name.
-mode(compile).

main(_) ->
    io:setopts([{encoding, latin1}]),
    lists:foreach(fun write/1, terms() ++ random_terms(90) ++ unsupported()),
    lists:foreach(fun line/1, by_hand()).

write({Kind, Term}) ->
    Encodings = [term_to_binary(Term, [deterministic, {minor_version, V}]) || V <- [2, 1, 0]],
    lists:foreach(fun(Encoded) -> line({Kind, Encoded, Term}) end, distinct(Encodings)).

distinct([]) -> [];
distinct([First | Rest]) -> [First | distinct([Other || Other <- Rest, Other =/= First])].

line({Kind, Encoded, Term}) ->
    io:format("~s\t~s\t~w~n", [Kind, base64:encode(Encoded), Term]).

terms() ->
    [{"integer", N} || N <- integers()] ++
    [{"float", F} || F <- floats()] ++
    [{"atom", A} || A <- atoms()] ++
    [{"binary", B} || B <- binaries()] ++
    [{"list", L} || L <- lists_()] ++
    [{"improper", L} || L <- impropers()] ++
    [{"tuple", T} || T <- tuples()] ++
    [{"map", M} || M <- maps_()] ++
    [{"nested", T} || T <- nested()].

integers() ->
    Bits = [7, 8, 15, 16, 24, 27, 28, 31, 32, 59, 60, 63, 64, 127, 128, 512, 2032, 2040, 2048],
    Powers = [1 bsl B || B <- Bits],
    Around = [P + D || P <- Powers, D <- [-1, 0, 1]],
    [0] ++ Around ++ [-N || N <- Around].

floats() ->
    [float_of(Bits) || Bits <- [
        16#0000000000000000, 16#8000000000000000,   % 0.0, -0.0
        16#0000000000000001, 16#8000000000000001,   % the smallest denormals
        16#000FFFFFFFFFFFFF, 16#0010000000000000,   % the largest denormal, the smallest normal
        16#7FEFFFFFFFFFFFFF, 16#FFEFFFFFFFFFFFFF,   % the largest
        16#3FF0000000000000, 16#BFF0000000000000,   % 1.0, -1.0
        16#3FEFFFFFFFFFFFFF, 16#3FF0000000000001,   % their neighbours
        16#3FB999999999999A, 16#400921FB54442D18,   % 0.1, pi
        16#4340000000000000, 16#4340000000000001,   % 2^53 and the next
        16#43E0000000000000, 16#C3E0000000000000,   % 2^63, -2^63
        16#7E37E43C8800759C, 16#01A56E1FC2F8F359]]. % 1.0e300, 1.0e-300

float_of(Bits) ->
    <<Float/float>> = <<Bits:64>>,
    Float.

atoms() ->
    Names = ["", "a", "ok", "true", "false", "undefined", "nil", "status", "Capital", "with space", "quo'te",
             "back\\slash", "new\nline", "tab\t", [0], [127], [233], [255], [256], [945, 946], [16#20AC],
             [16#1F600], [16#FFFF], "$", "and", "maybe", "else", "a@b.c_D9", lists:duplicate(255, $x),
             lists:duplicate(255, 233), lists:duplicate(255, 16#20AC), lists:duplicate(255, 16#1F600),
             lists:duplicate(127, 233), lists:duplicate(128, 233)],
    [list_to_atom(Name) || Name <- Names].

binaries() ->
    [<<>>, <<0>>, <<255>>, <<"text">>, <<"gr\303\274\303\237"/utf8>>, list_to_binary(lists:seq(0, 255)),
     binary:copy(<<131>>, 300), binary:copy(<<"linx">>, 20000)].

lists_() ->
    [[], [[]], [0], [255], [256], [-1], [1, 2, 3], "text", lists:seq(0, 255), lists:duplicate(65535, 7),
     lists:duplicate(65536, 7), [a, b, c], [1.0, 1, true, <<"1">>], [[1], [[2]], [[[3]]]], [{k, v}, {k, w}],
     [ok | "string tail"], lists:seq(1000, 1300)].

impropers() ->
    [[a | b], [1 | 2], [1, 2, 3 | 4], [[] | {}], [[a | b] | c], [a | <<"bin">>], [a, [b | c] | #{}],
     [1.5 | 0.0], {[1 | 2], [[3 | 4]]}].

tuples() ->
    [{}, {{}}, {a}, {1, 2.0, <<"3">>, "4", '5', #{6 => 7}}, list_to_tuple(lists:seq(1, 255)),
     list_to_tuple(lists:seq(1, 256)), list_to_tuple(lists:duplicate(1000, {})), {status, ready, 1234},
     {status, exited, 0}, {error, 2, execve}, {signal, 15}].

maps_() ->
    [#{}, #{a => 1}, #{1 => a, 2 => b}, #{<<"key">> => <<"value">>}, #{"list" => 1}, #{{t, 1} => 2},
     #{#{} => #{}}, #{[] => [], {} => {}}, #{#{a => [1]} => [#{b => 2}]}, #{1.5 => x, -1 => y},
     #{[a | b] => 1, [[1] | [2]] => 2},
     #{[1] => list, {1} => tuple, <<1>> => binary, '1' => atom}, #{{[#{[k] => [v]}]} => deep},
     maps:from_list([{N, N * N} || N <- lists:seq(1, 32)]),
     maps:from_list([{N, N * N} || N <- lists:seq(1, 33)]),
     maps:from_list([{<<N:32>>, [N]} || N <- lists:seq(1, 300)]),
     maps:from_list([{{N, [N]}, #{}} || N <- lists:seq(1, 50)])].

nested() ->
    [nest(fun(T) -> [T] end, 60), nest(fun(T) -> {T} end, 60), nest(fun(T) -> #{T => T} end, 6),
     nest(fun(T) -> #{k => T} end, 60), nest(fun(T) -> [T, T | T] end, 5),
     {spawn, #{argv => [<<"/bin/sh">>, <<"-c">>, <<"exit 3">>], namespaces => [net, mount, pid],
               cwd => <<"/tmp">>, env => [<<"PATH=/usr/bin:/bin">>, <<"HOME=/">>, <<"EMPTY=">>],
               stdio => {devnull, inherit, {fd, 7}}, no_new_privs => true}},
     {enter, #{target => 4711, argv => ["/bin/true"],
               namespaces => [user, mount, uts, ipc, cgroup, net, time, pid]}}].

nest(_, 0) -> [];
nest(Wrap, Levels) -> Wrap(nest(Wrap, Levels - 1)).

%% Random terms. Map keys are atoms, binaries and small tuples of them: no two that are one to Python.

random_terms(Count) ->
    put(random, 1),
    [{"random", random_container(uniform(7), 3)} || _ <- lists:seq(1, Count)].

%% 1..N, from a 64-bit linear congruential generator.
uniform(N) ->
    Next = (get(random) * 6364136223846793005 + 1442695040888963407) band 16#FFFFFFFFFFFFFFFF,
    put(random, Next),
    1 + (Next bsr 33) rem N.

random_term(0) -> random_leaf(uniform(7));
random_term(Depth) ->
    case uniform(9) of
        Kind when Kind =< 7 -> random_container(Kind, Depth);
        _ -> random_term(0)
    end.

random_container(Kind, Depth) when Kind =< 2 -> random_terms_of(Depth);
random_container(Kind, Depth) when Kind =< 4 -> list_to_tuple(random_terms_of(Depth));
random_container(Kind, Depth) when Kind =< 6 ->
    maps:from_list([{random_key(), Value} || Value <- random_terms_of(Depth)]);
random_container(7, Depth) -> [random_term(Depth - 1) | random_leaf(uniform(5))].

random_terms_of(Depth) ->
    [random_term(Depth - 1) || _ <- lists:seq(1, uniform(6) - 1)].

random_leaf(1) ->
    Sixteen = fun(_, N) -> N * 65536 + uniform(65536) end,
    lists:foldl(Sixteen, uniform(3) - 2, lists:seq(1, uniform(14)));
random_leaf(2) -> uniform(256) - 1;
random_leaf(3) ->
    <<Float/float>> = <<(uniform(2) - 1):1, (900 + uniform(200)):11, (uniform(1 bsl 30)):52>>,
    Float;
random_leaf(4) -> random_atom();
random_leaf(5) -> random_binary();
random_leaf(6) -> [uniform(256) - 1 || _ <- lists:seq(1, uniform(20))];
random_leaf(7) -> lists:nth(uniform(4), [true, false, [], {}]).

random_atom() ->
    Characters = [$a, $B, $_, $\s, $', 233, 955, 16#1F600],
    list_to_atom([lists:nth(uniform(8), Characters) || _ <- lists:seq(1, uniform(9))]).

random_binary() -> list_to_binary([uniform(256) - 1 || _ <- lists:seq(1, uniform(16))]).

random_key() ->
    case uniform(3) of
        1 -> random_atom();
        2 -> random_binary();
        3 -> {random_atom(), [random_binary()]}
    end.

%% Pids, ports and references of this node are other ones at each run: take them from their printed form.

unsupported() ->
    [{"unsupported_" ++ Kind, Term} || {Kind, Term} <- [
        {"bitstring", <<1:1>>}, {"bitstring", <<"abc", 5:3>>},
        {"pid", list_to_pid("<0.1.2>")}, {"port", list_to_port("#Port<0.7>")},
        {"reference", list_to_ref("#Ref<0.1.2.3>")}, {"fun", fun lists:map/2},
        {"pid", [a, {b, #{c => list_to_pid("<0.1.2>")}}]}, {"bitstring", #{<<1:1>> => 1}}]].

%% What term_to_binary/2 writes only on request, or binary_to_term/1 reads although nobody writes it.

by_hand() ->
    Zeros = lists:duplicate(1000, zero),
    Compressed = term_to_binary(Zeros, [compressed, {minor_version, 2}]),
    [{"unsupported_compressed", Compressed, Zeros}] ++
    [{"non_canonical", Encoded, binary_to_term(Encoded)} || Encoded <- [
        <<131, 98, 5:32>>, <<131, 98, 255:32>>, <<131, 110, 0, 0>>, <<131, 110, 0, 1>>, <<131, 110, 1, 0, 5>>,
        <<131, 110, 2, 1, 0, 0>>, <<131, 110, 1, 7, 5>>, <<131, 110, 8, 0, 5, 0:56>>, <<131, 111, 0:32, 0>>,
        <<131, 111, 1:32, 1, 9>>, <<131, 99, "1.50000000000000000000e+00", 0:40>>, <<131, 99, "+1.5", 0:216>>,
        <<131, 99, "-1.5E3", 0:200>>, <<131, 99, "1.0e-400", 0:184>>, <<131, 100, 4:16, "true">>,
        <<131, 115, 5, "false">>, <<131, 115, 1, 233>>, <<131, 118, 2:16, "ok">>, <<131, 105, 0:32>>,
        <<131, 105, 2:32, 97, 1, 97, 2>>, <<131, 107, 0:16>>, <<131, 107, 2:16, "ab">>,
        <<131, 108, 0:32, 106>>, <<131, 108, 0:32, 97, 5>>, <<131, 108, 1:32, 97, 1, 107, 2:16, "ab">>,
        <<131, 108, 1:32, 97, 1, 108, 1:32, 97, 2, 97, 3>>]].
