#!/usr/bin/env escript
%% Reads external terms from the file named by the argument, one in base64 on each line, and writes for each
%% one `Base64<TAB>Printed`: what binary_to_term/1 made of it, encoded again and printed. A term that Erlang
%% refuses gives `refused<TAB>Reason`.
-mode(compile).

main([Path]) ->
    io:setopts([{encoding, latin1}]),
    {ok, Content} = file:read_file(Path),
    lists:foreach(fun echo/1, binary:split(Content, <<"\n">>, [global, trim])).

echo(Line) ->
    try binary_to_term(base64:decode(Line)) of
        Term -> io:format("~s\t~w~n", [base64:encode(term_to_binary(Term, [{minor_version, 2}])), Term])
    catch
        _:Reason -> io:format("refused\t~w~n", [Reason])
    end.
