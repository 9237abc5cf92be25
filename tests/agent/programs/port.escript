#!/usr/bin/env escript
%% The agent as a stock Erlang Port: `port.escript AGENT` runs one transcript after the other and prints, for each, its
%% name and all that the port said, as a term and a full stop. Host pids differ from run to run: `host` stands for the
%% first that was announced. A port that says nothing for a minute is a failure.
-mode(compile).
-define(PATIENCE, 60000).

main([Agent]) ->
    Failed = [Name || {Name, Transcript} <- transcripts(), not run(Name, Transcript, Agent)],
    halt(case Failed of [] -> 0; _ -> 1 end).

%% What to do, in order. An event is waited for, and must be the next one; `all` takes what is left, up to the exit.
transcripts() ->
    Sleep = [<<"/bin/sleep">>, <<"60">>],
    [{checkpoint, [request(#{argv => ["/bin/echo", "hello"], stdio => devnull}), spawned, ready, parked, proceed, running, all]},
     {exit_code, [request(#{argv => ["/bin/sh", "-c", "exit 42"]}), proceed, all]},
     {signal, [request(#{argv => Sleep}), spawned, ready, proceed, running, {signal, 15}, all]},
     {signal_buffered, [request(#{argv => Sleep}), spawned, ready, {signal, 15}, parked, proceed, all]},
     {signal_before_ready, [request(#{argv => Sleep}), {signal, 9}, proceed, all]},
     {abort, [request(#{argv => Sleep, namespaces => [user, net]}), spawned, ready, parked, abort, all]},
     {abort_before_ready, [request(#{argv => Sleep}), abort, all]},
     {abort_while_running, [request(#{argv => Sleep}), spawned, ready, proceed, running, abort, {signal, 9}, all]},
     {namespaces, [request(#{argv => Sleep, namespaces => [user, uts, ipc, pid]}), spawned, ready, proceed, running, {signal, 9}, all]},
     {no_such_program, [request(#{argv => ["/this/does/not/exist"]}), spawned, ready, proceed, all]},
     {no_such_directory, [request(#{argv => Sleep, cwd => "/this/does/not/exist"}), proceed, all]},
     {no_argv, [request(#{}), all]},
     {bad_namespace, [request(#{argv => Sleep, namespaces => [typo]}), all]},
     {no_such_target, [{enter, #{argv => Sleep, target => 99999999}}, all]},
     {environment, [request(#{argv => ["/bin/sh", "-c", "test \"$A$B\" = \"1x=y\" && test $(pwd) = /usr"],
                            env => [{"A", "1"}, {<<"B">>, "x=y"}, "PATH=/bin:/usr/bin"], cwd => "/usr",
                            stdio => [{stdout, devnull}, {stderr, stdout}]}), proceed, all]},
     {environment_map, [request(#{argv => ["/bin/sh", "-c", "test \"$A\" = 1"], env => #{<<"A">> => "1"}, no_new_privs => true,
                                stdio => #{stdin => devnull}}), proceed, all]},
     {unknown_keys, [request(#{argv => ["/bin/true"], owner => self(), ref => make_ref(), 'fun' => fun erlang:halt/0,
                             float => 1.5, big => 1 bsl 100, bits => <<1:3>>, tail => [1 | 2], <<"key">> => "text"}), proceed, all]},
     {closed_while_parked, [request(#{argv => Sleep}), spawned, ready, parked, close, gone]},
     {closed_while_running, [request(#{argv => Sleep}), spawned, ready, proceed, running, close, gone]}].

request(Options) -> {spawn, Options}.

run(Name, Transcript, Agent) ->
    Port = open_port({spawn_executable, Agent},
                     [{packet, 4}, nouse_stdio, binary, exit_status, {args, ["--port"]}]),
    Seen = play(Transcript, Port, undefined, []),
    io:format("~0p.~n", [{Name, Seen}]),
    not lists:keymember(unexpected, 1, [Event || Event <- Seen, is_tuple(Event)]).

%% Seen is in the order of the events in the end.
play([], _, _, Seen) -> lists:reverse(Seen);
play([close | Rest], Port, Host, Seen) ->
    port_close(Port),
    play(Rest, Port, Host, [closed | Seen]);
play([gone | Rest], Port, Host, Seen) ->
    play(Rest, Port, Host, [gone(Host, 6000) | Seen]);
play([parked | Rest], Port, Host, Seen) ->
    {ok, Link} = file:read_link("/proc/" ++ integer_to_list(Host) ++ "/exe"),
    play(Rest, Port, Host, [{parked, filename:basename(Link) =/= "sleep" andalso filename:basename(Link) =/= "echo"} | Seen]);
play([all | _], Port, Host, Seen) ->
    case next(Port) of
        {exit_status, _} = Last -> lists:reverse([Last | Seen]);
        timeout -> lists:reverse([{unexpected, timeout} | Seen]);
        Event -> {Host1, Printed} = hide(Event, Host), play([all], Port, Host1, [Printed | Seen])
    end;
play([Expected | Rest], Port, Host, Seen) when Expected =:= spawned; Expected =:= ready; Expected =:= running ->
    case next(Port) of
        Event when is_tuple(Event), element(1, Event) =:= status, element(2, Event) =:= Expected ->
            {Host1, Printed} = hide(Event, Host),
            play(Rest, Port, Host1, [Printed | Seen]);
        Other -> lists:reverse([{unexpected, Other} | Seen])
    end;
play([Message | Rest], Port, Host, Seen) ->
    port_command(Port, term_to_binary(Message)),
    play(Rest, Port, Host, Seen).

next(Port) ->
    receive
        {Port, {data, Data}} -> binary_to_term(Data);
        {Port, {exit_status, Status}} -> {exit_status, Status}
    after ?PATIENCE -> timeout
    end.

hide({status, spawned, Pid}, undefined) -> {Pid, {status, spawned, host}};
hide({status, Kind, Pid}, Pid) when Kind =/= exited, Kind =/= signaled -> {Pid, {status, Kind, host}};
hide(Event, Host) -> {Host, Event}.

%% Nothing to wait on once the port is closed, so this looks until the workload is no more.
gone(_, 0) -> {unexpected, still_there};
gone(Host, Tries) ->
    case filelib:is_file("/proc/" ++ integer_to_list(Host)) of
        false -> gone;
        true -> receive after 10 -> gone(Host, Tries - 1) end
    end.
